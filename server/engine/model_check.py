"""What packed sequences cannot do for a model, found before the first answer: refuse rather than answer wrongly.

That is chunked or linear attention, and layers that bypass the attention interface or hide their window from it. RoPE whose factors
depend on the longest sequence of a batch is bounded by the base model's `context_limit`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor
from transformers import PretrainedConfig

from server.engine.attend import Kind
from server.engine.attention import PackedStep, Span
from server.engine.base_model import BaseModel
from server.engine.kv_cache import KvCache
from server.engine.routed_lora import Run

PROBE = 8
"""Tokens of the probe sequence."""
STARTS = (4, 5, 6)
"""Tokens of its starts beside it, enough of them together to be decoded in one product."""
_LAYER_TYPES = {"full_attention", "sliding_attention"}


class Computes(Protocol):
    """The runner."""

    def packed(self, spans: Sequence[Span]) -> PackedStep: ...

    def forward(self, step: PackedStep, ids: list[int], wanted: list[int]) -> Tensor: ...

    def decode(self, ids: list[int], spans: Sequence[Span], modules: list[Run], extractors: list[Run]) -> Tensor: ...


@torch.no_grad()
def own_logits(base: BaseModel) -> Tensor:
    """The probe's logits `[PROBE, vocabulary]` by the model's own attention."""
    logits: Tensor = base.model(input_ids=torch.tensor([_probe(base)], device=base.device), use_cache=False).logits[0]
    return logits


def check(base: BaseModel, runner: Computes, own: Tensor) -> None:
    """Raises ValueError unless the probe, packed beside starts of itself, gives the model's own logits, and so does a decoding step that
    goes on with those starts."""
    cache, ids = KvCache(1024), _probe(base)
    spans = list(_side_by_side(cache, (*STARTS, PROBE)))
    step = runner.packed(spans)
    first = sum(STARTS)
    packed = runner.forward(step, [token for span in spans for token in ids[: span.tokens]], list(range(first, first + PROBE)))
    _check_kinds(base.model.config.get_text_config(), step.kinds)
    _compare(packed, own)
    going_on = [Span(held=span.held, start=span.end, tokens=1, offset=lane) for lane, span in enumerate(spans[:-1])]
    _compare(runner.decode([ids[start] for start in STARTS], going_on, [], []), own[list(STARTS)])


def _compare(computed: Tensor, own: Tensor) -> None:
    tolerance = 0.1 if own.dtype.itemsize < 4 else 1e-3
    if not float((computed - own).abs().max()) <= tolerance * float(own.abs().max()):
        raise ValueError("this model computes packed sequences differently from single ones; the embedded engine cannot serve it")


def _check_kinds(config: PretrainedConfig, kinds: list[Kind]) -> None:
    windowed = getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True)
    uniform = "sliding_attention" if windowed else "full_attention"
    types = getattr(config, "layer_types", None) or [uniform] * config.num_hidden_layers
    if not set(types) <= _LAYER_TYPES or sorted(kind.layer for kind in kinds) != list(range(len(types))):
        raise ValueError("this model has layers without full or sliding attention; the embedded engine cannot serve it")
    windows = {kind.layer: kind.window for kind in kinds}
    if any(windows[layer] is None for layer, name in enumerate(types) if name == "sliding_attention"):
        raise ValueError("this model hides its sliding window from the attention interface; the embedded engine cannot serve it")


def _probe(base: BaseModel) -> list[int]:
    return [token % int(base.model.config.get_text_config().vocab_size) for token in range(3, 3 + PROBE)]


def _side_by_side(cache: KvCache, lengths: Sequence[int]) -> Iterator[Span]:
    offset = 0
    for tokens in lengths:
        held = cache.take(PROBE)
        assert held is not None
        yield Span(held=held, start=0, tokens=tokens, offset=offset)
        offset += tokens
