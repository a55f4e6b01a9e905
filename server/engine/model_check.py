"""What packed sequences cannot do for a model, found before the first answer: refuse rather than answer wrongly.

That is chunked or linear attention, and layers that bypass the attention interface or hide their window from it. RoPE whose factors
depend on the longest sequence of a batch is bounded by the base model's `context_limit`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PretrainedConfig

from server.engine.attention import Kind, PackedStep, Span
from server.engine.base_model import BaseModel
from server.engine.kv_cache import KvCache

PROBE = 8
"""Tokens of the probe sequence."""
_LAYER_TYPES = {"full_attention", "sliding_attention"}

Forward = Callable[[PackedStep, list[int], list[int], list[int]], Tensor]
"""Step, ids, positions and wanted rows to logits."""


@torch.no_grad()
def own_logits(base: BaseModel) -> Tensor:
    """The probe's logits `[PROBE, vocabulary]` by the model's own attention."""
    logits: Tensor = base.model(input_ids=torch.tensor([_probe(base)], device=base.device), use_cache=False).logits[0]
    return logits


def check(base: BaseModel, forward: Forward, own: Tensor) -> None:
    """Raises ValueError unless the probe, packed behind the start of itself, gives the model's own logits."""
    cache, ids, short = KvCache(1024), _probe(base), PROBE // 2
    spans = [_span(cache, short, 0), _span(cache, PROBE, short)]
    step = PackedStep(spans, base.device)
    packed = forward(step, ids[:short] + ids, [*range(short), *range(PROBE)], list(range(short, short + PROBE)))
    _check_kinds(base.model.config.get_text_config(), step.kinds)
    tolerance = 0.1 if base.dtype.itemsize < 4 else 1e-3
    if not float((packed - own).abs().max()) <= tolerance * float(own.abs().max()):
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


def _span(cache: KvCache, tokens: int, offset: int) -> Span:
    held = cache.take(tokens)
    assert held is not None
    return Span(held=held, start=0, tokens=tokens, offset=offset)
