"""Runs the model over a step's work: packs tokens, positions, adapters and cache rows into one forward pass.

Holds the model while it lives: linear layers are routed and attention is ours until `close` puts everything back. Knows nothing of
queues, sampling or where adapters come from.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from server.engine import attention, model_check, routed_lora
from server.engine.adapter_bank import AdapterBank
from server.engine.attention import PackedStep, Span
from server.engine.base_model import BaseModel, adapted_layers, output_layers
from server.engine.options import EngineOptions
from server.engine.request import Scope
from server.engine.routed_lora import Route, Router, Run, Worn
from server.engine.scheduler import Work
from server.engine.thin import ThinLinear

EXTRACTOR_SLOTS = 3
"""The worn one, the active one and the next."""


class Runner:
    def __init__(self, base: BaseModel, options: EngineOptions) -> None:
        """Raises ValueError where another runner holds the model or the model is not one for packed sequences."""
        if routed_lora.installed(base.model):
            raise ValueError("another engine runs on this model")
        self.base = base
        self.layers = adapted_layers(base.model)
        self._heads = output_layers(base.model)
        self.modules = self._bank(options.slots, options.max_rank)
        self.extractors = self._bank(EXTRACTOR_SLOTS, options.max_rank)
        self._router = Router()
        self._planned: tuple[list[Run], list[Run]] = ([], [])
        self._own_attention = base.model.config._attn_implementation
        own = model_check.own_logits(base)
        attention.register()
        base.model.set_attn_implementation(attention.PACKED)
        routed_lora.install(base.model, self.layers, self._router)
        for name, layer in self._heads.items():
            routed_lora.replace(base.model, name, ThinLinear(layer))
        try:
            model_check.check(base, self.forward, own)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """The model as it was before."""
        routed_lora.uninstall(self.base.model, {**self.layers, **self._heads})
        self.base.model.set_attn_implementation(self._own_attention)

    def run(self, works: Sequence[Work]) -> Tensor:
        """Logits `[N, vocabulary]`: each work's wanted positions, in order."""
        spans = list(_spans(works))
        packed = list(zip(works, spans, strict=True))
        self._route(
            [run for work, span in packed for run in _runs(work, span, work.sequence.outfit.module)],
            [run for work, span in packed for run in _runs(work, span, work.sequence.outfit.extractor)],
        )
        ids = [token for work in works for token in work.sequence.tokens[work.start : work.end]]
        positions = [position for span in spans for position in range(span.start, span.end)]
        wanted = [row for work, span in packed for row in _rows(span)[span.tokens - work.logits :]]
        return self.forward(PackedStep(spans, self.base.device), ids, positions, wanted)

    @torch.no_grad()
    def forward(self, step: PackedStep, ids: list[int], positions: list[int], wanted: list[int]) -> Tensor:
        with attention.packing(step):
            output = self.base.model(
                input_ids=self._tensor(ids)[None],
                position_ids=self._tensor(positions)[None],
                use_cache=False,
                logits_to_keep=self._tensor(wanted),
            )
        logits: Tensor = output.logits[0]
        return logits

    def _route(self, modules: list[Run], extractors: list[Run]) -> None:
        """Plans outlive their step: in decode the same rows wear the same slots step after step."""
        if (modules, extractors) != self._planned:
            self._planned = (modules, extractors)
            banks = ((self.modules, modules), (self.extractors, extractors))
            self._router.routes = tuple(Route(bank, runs) for bank, runs in banks if runs)

    def _bank(self, slots: int, max_rank: int) -> AdapterBank:
        shapes = [(linear.out_features, linear.in_features) for linear in self.layers.values()]
        return AdapterBank(slots=slots, max_rank=max_rank, shapes=shapes, dtype=self.base.dtype, device=self.base.device)

    def _tensor(self, values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=self.base.device)


def _spans(works: Sequence[Work]) -> Iterator[Span]:
    offset = 0
    for work in works:
        assert work.sequence.held is not None
        yield Span(held=work.sequence.held, start=work.start, tokens=work.end - work.start, offset=offset)
        offset += work.end - work.start


def _rows(span: Span) -> range:
    return range(span.offset, span.offset + span.tokens)


def _runs(work: Work, span: Span, worn: Worn | None) -> Iterator[Run]:
    """The rows of a sequence that an adapter acts on: under scope `answer` none of its bare prefix."""
    if worn is None:
        return
    bare = len(work.sequence.request.prompt.bare) if worn.scope is Scope.ANSWER else 0
    first = span.offset + max(0, bare - span.start)
    end = span.offset + span.tokens
    if first < end:
        yield Run(worn=worn, start=first, end=end)
