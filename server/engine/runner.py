"""Runs the model over a step's work: packs tokens, positions, adapters and cache rows into one forward pass.

Holds the model while it lives: linear layers are routed and attention is ours until `close` puts everything back. Knows nothing of
queues, sampling or where adapters come from.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from server.engine import attention, model_check, routed_lora
from server.engine.adapter_bank import AdapterBank
from server.engine.attend import Attend
from server.engine.attention import PackedStep, Span, Step
from server.engine.attention_choice import SDPA, Choice, choose, features, implementation
from server.engine.base_model import BaseModel, adapted_layers, output_layers
from server.engine.decoding import Decoding, Record, cuda_graphs
from server.engine.options import EngineOptions
from server.engine.request import Scope
from server.engine.routed_lora import Route, Router, Run, Worn
from server.engine.scheduler import Work
from server.engine.slot_lanes import SlotLanes
from server.engine.thin import ThinLinear

logger = logging.getLogger(__name__)

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
        on_gpu = base.device.type == "cuda"
        self._static = on_gpu if options.static_decode is None else options.static_decode
        self.attention = choose(options.attention, features(base))
        self._attend: Attend
        self.decoding: Decoding | None = None
        """Decoding steps of fixed shapes, where they are wanted."""
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
            self._settle(own)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """The model as it was before."""
        routed_lora.uninstall(self.base.model, {**self.layers, **self._heads})
        self.base.model.set_attn_implementation(self._own_attention)

    def stats(self) -> dict[str, float]:
        """Of decoding in fixed shapes: shapes recorded, steps replayed, and whether it was given up."""
        names = ("recorded", "replayed", "failed")
        return {f"decode_{name}": float(getattr(self.decoding, name)) for name in names} if self.decoding else {}

    def run(self, works: Sequence[Work]) -> Tensor:
        """Logits `[N, vocabulary]`: each work's wanted positions, in order."""
        spans = list(_spans(works))
        packed = list(zip(works, spans, strict=True))
        modules = [run for work, span in packed for run in _runs(work, span, work.sequence.outfit.module)]
        extractors = [run for work, span in packed for run in _runs(work, span, work.sequence.outfit.extractor)]
        ids = [token for work in works for token in work.sequence.tokens[work.start : work.end]]
        if all(span.tokens == work.logits == 1 for work, span in packed):
            return self.decode(ids, spans, modules, extractors)
        self._route(modules, extractors)
        return self.forward(self.packed(spans), ids, [row for work, span in packed for row in _rows(span)[span.tokens - work.logits :]])

    def decode(self, ids: list[int], spans: Sequence[Span], modules: list[Run], extractors: list[Run]) -> Tensor:
        """Logits of a step in which every sequence has one new token."""
        logits = self.decoding.run(ids, spans, (modules, extractors)) if self.decoding else None
        if logits is not None:
            return logits
        self._route(modules, extractors)
        return self.forward(self.packed(spans), ids, list(range(len(ids))))

    def packed(self, spans: Sequence[Span]) -> PackedStep:
        return PackedStep(spans, self.base.device, self._attend)

    def forward(self, step: PackedStep, ids: list[int], wanted: list[int]) -> Tensor:
        """Logits of the wanted rows of a packed step."""
        positions = [position for span in step.spans for position in range(span.start, span.end)]
        return self._model(step, self._tensor(ids)[None], self._tensor(positions)[None], self._tensor(wanted))

    @torch.no_grad()
    def _model(self, step: Step, ids: Tensor, positions: Tensor, wanted: Tensor | int) -> Tensor:
        with attention.packing(step):
            output = self.base.model(input_ids=ids, position_ids=positions, use_cache=False, logits_to_keep=wanted)
        logits: Tensor = output.logits[0]
        return logits

    def _model_at_fixed_shape(self, step: Step, ids: Tensor, positions: Tensor, adapters: Sequence[SlotLanes]) -> Tensor:
        routes, self._router.routes = self._router.routes, tuple(adapters)
        try:
            return self._model(step, ids, positions, 0)  # all rows
        finally:
            self._router.routes = routes

    def _settle(self, own: Tensor) -> None:
        """Compute in the first way that gives the model's own logits. Raises what the plainest one raises."""
        choices = [self.attention]
        if self.attention.name != SDPA:
            choices.append(Choice(name=SDPA, reason=f"{self.attention.name} did not compute this model as it should"))
        ways = [(choice, self._static) for choice in choices]
        if self._static:
            ways.append((choices[-1], False))
        for choice, static in ways[:-1]:
            try:
                return self._take(choice, static, own)
            except Exception:
                shapes = "fixed shapes" if static else "shapes as they come"
                logger.warning("attention by %s in %s does not compute this model as it should", choice.name, shapes, exc_info=True)
        self._take(*ways[-1], own)

    def fixed_shapes(self, record: Record | None) -> Decoding:
        banks = (self.modules, self.extractors)
        return Decoding(self._model_at_fixed_shape, banks, self._attend, self.base.device, record)

    def _take(self, choice: Choice, static: bool, own: Tensor) -> None:
        device = self.base.device
        self.attention, self._attend = choice, implementation(choice.name, device)
        self.decoding = self.fixed_shapes(cuda_graphs(device) if device.type == "cuda" else None) if static else None
        model_check.check(self.base, self, own)
        if self.decoding:
            self.decoding.clear()
        logger.info("attention by %s: %s", choice.name, choice.reason)

    def _route(self, modules: list[Run], extractors: list[Run]) -> None:
        """Plans outlive their step: in decode the same rows wear the same slots step after step."""
        if (modules, extractors) != self._planned:
            self._planned = (modules, extractors)
            banks = ((self.modules, modules), (self.extractors, extractors))
            self._router.routes = tuple(Route(bank, runs) for bank, runs in banks if runs)

    def _bank(self, slots: int, max_rank: int) -> AdapterBank:
        shapes = [(linear.out_features, linear.in_features) for linear in self.layers.values()]
        return AdapterBank(
            slots=slots, max_rank=max_rank, shapes=shapes, dtype=self.base.dtype, device=self.base.device, readable=self._static
        )

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
