"""Attention over a packed row: the new tokens of many sequences side by side, each seeing only its own keys and values.

Registered with transformers under `PACKED`; without a mask function under that name transformers makes no masks, so causality and
windows are ours. `packing()` names the step whose sequences the calling thread is running. Knows positions and cache rows, nothing
of requests or adapters.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from server.engine.kv_cache import KvPool, KvRow

PACKED = "kmserve_packed"


@dataclass(frozen=True, kw_only=True)
class Span:
    """`tokens` new tokens of one sequence, from `offset` of the packed row, at positions `start`, `start + 1`, ..."""

    held: KvRow
    start: int
    tokens: int
    offset: int

    @property
    def end(self) -> int:
        return self.start + self.tokens


@dataclass(frozen=True, kw_only=True)
class Kind:
    """How a layer attends: its number, the factor on the scores, how far back it sees and the cap on the scores."""

    layer: int
    scaling: float
    window: int | None
    softcap: float | None


class Part(Protocol):
    """Some of a step's sequences. `attend` stores their new keys and values and fills their places in `out` `[T, heads, dim]`."""

    def attend(self, kind: Kind, query: Tensor, key: Tensor, value: Tensor, out: Tensor) -> None: ...


class PackedStep:
    """The sequences of one forward pass."""

    def __init__(self, spans: Sequence[Span], device: torch.device) -> None:
        self._parts = _parts(spans, device)
        self.kinds: list[Kind] = []
        """The layers that have attended, in order."""

    def attend(self, kind: Kind, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        self.kinds.append(kind)
        out = query.new_empty(query.shape[2], query.shape[1], value.shape[3])
        for part in self._parts:
            part.attend(kind, query, key, value, out)
        return out.unsqueeze(0)


class _Single:
    """One sequence with any number of new tokens."""

    def __init__(self, span: Span, device: torch.device) -> None:
        self._span = span
        self._device = device
        self._masks: dict[int, Tensor] = {}

    def attend(self, kind: Kind, query: Tensor, key: Tensor, value: Tensor, out: Tensor) -> None:
        span, row = self._span, self._span.held.row
        keys, values = span.held.pool.layer(kind.layer, key, value)
        new = slice(span.offset, span.offset + span.tokens)
        keys[row, :, span.start : span.end] = key[0, :, new]
        values[row, :, span.start : span.end] = value[0, :, new]
        first = max(0, span.start - kind.window + 1) if kind.window else 0
        seen = slice(first, span.end)
        result = _attend(query[:, :, new], keys[row : row + 1, :, seen], values[row : row + 1, :, seen], self._mask(kind, first), kind)
        out[new] = result[0].transpose(0, 1)

    def _mask(self, kind: Kind, first: int) -> Tensor | None:
        """`[1, 1, tokens, seen]`, True where a token may look; None for the only new token, which sees all."""
        span = self._span
        if span.tokens == 1:
            return None
        reach = kind.window or span.end
        mask = self._masks.get(reach)
        if mask is None:
            asking = torch.arange(span.start, span.end, device=self._device)
            mask = self._masks[reach] = _visible(asking, first, span.end, reach)[None, None]
        return mask


class _Decode:
    """Sequences of one pool with one new token each, in one product over the pool's rows.

    A free row among them repeats the first sequence's question over zeros; its answer is dropped.
    """

    def __init__(self, spans: Sequence[Span], device: torch.device) -> None:
        self._pool = spans[0].held.pool
        by_row = {span.held.row: span for span in spans}
        every = [by_row.get(row, spans[0]) for row in range(self._pool.high)]
        self._rows = torch.tensor([span.held.row for span in spans], device=device)
        self._offsets = torch.tensor([span.offset for span in spans], device=device)
        self._starts = torch.tensor([span.start for span in spans], device=device)
        self._asking = torch.tensor([span.offset for span in every], device=device)
        self._asking_at = torch.tensor([span.start for span in every], device=device)
        self._first = min(span.start for span in spans)
        self._end = max(span.end for span in spans)
        self._masks: dict[int, Tensor] = {}

    def attend(self, kind: Kind, query: Tensor, key: Tensor, value: Tensor, out: Tensor) -> None:
        keys, values = self._pool.layer(kind.layer, key, value)
        keys[self._rows, :, self._starts] = key[0].index_select(1, self._offsets).transpose(0, 1)
        values[self._rows, :, self._starts] = value[0].index_select(1, self._offsets).transpose(0, 1)
        first = max(0, self._first - kind.window + 1) if kind.window else 0
        seen = slice(first, self._end)
        asking = query[0].index_select(1, self._asking).transpose(0, 1).unsqueeze(2)
        high = self._pool.high
        result = _attend(asking, keys[:high, :, seen], values[:high, :, seen], self._mask(kind, first), kind)
        out.index_copy_(0, self._offsets, result.index_select(0, self._rows).squeeze(2))

    def _mask(self, kind: Kind, first: int) -> Tensor:
        """`[rows, 1, 1, seen]`, True where a row's token may look."""
        reach = kind.window or self._end
        mask = self._masks.get(reach)
        if mask is None:
            mask = self._masks[reach] = _visible(self._asking_at, first, self._end, reach)[:, None, None]
        return mask


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """The function transformers calls in each layer: `query` `[1, heads, T, dim]` -> `[1, T, heads, dim]`."""
    if attention_mask is not None or others.get("s_aux") is not None or others.get("position_bias") is not None:
        raise NotImplementedError(f"{type(module).__name__} attends in a way that packed sequences do not support")
    kind = Kind(
        layer=int(module.layer_idx),  # type: ignore[arg-type]
        scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
        window=sliding_window,
        softcap=softcap,
    )
    return _running.step.attend(kind, query, key, value), None


class _Running(threading.local):
    step: PackedStep


_running = _Running()


@contextmanager
def packing(step: PackedStep) -> Iterator[None]:
    """Within, this thread's forward passes belong to `step`."""
    _running.step = step
    try:
        yield
    finally:
        del _running.step


def register() -> None:
    """Make `PACKED` known to transformers; twice is as good as once."""
    AttentionInterface.register(PACKED, packed_attention)


def _parts(spans: Sequence[Span], device: torch.device) -> list[Part]:
    """Sequences that decode together where their pool's rows are dense enough for that to pay, the others one by one."""
    decoding: dict[KvPool, list[Span]] = {}
    parts: list[Part] = []
    for span in spans:
        if span.tokens == 1:
            decoding.setdefault(span.held.pool, []).append(span)
        else:
            parts.append(_Single(span, device))
    for pool, together in decoding.items():
        if len(together) > 2 and 2 * len(together) > pool.high:
            parts.append(_Decode(together, device))
        else:
            parts.extend(_Single(span, device) for span in together)
    return parts


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, kind: Kind) -> Tensor:
    """`query` `[N, heads, S, dim]` over `key`, `value` `[N, kv heads, seen, dim]`; `mask` True where it may look."""
    batch, heads, asking, dim = query.shape
    shared = heads // key.shape[1]
    if asking == 1 and shared > 1:
        packed = query.reshape(batch, key.shape[1], shared, dim)
        return _scores(packed, key, value, mask, kind).reshape(batch, heads, 1, value.shape[3])
    if shared > 1:
        key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
    return _scores(query, key, value, mask, kind)


def _visible(asking: Tensor, first: int, end: int, reach: int) -> Tensor:
    """`[asking, end - first]`: whether a token at a position of `asking` sees positions `first .. end - 1`, at most `reach` back."""
    asked = torch.arange(first, end, device=asking.device)
    return (asked <= asking[:, None]) & (asked > asking[:, None] - reach)


def _scores(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, kind: Kind) -> Tensor:
    if kind.softcap is None:
        return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=kind.scaling)
    scores = torch.tanh(query @ key.transpose(2, 3) * kind.scaling / kind.softcap) * kind.softcap
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    precise = torch.float64 if query.dtype == torch.float64 else torch.float32
    return torch.softmax(scores, dim=-1, dtype=precise).to(query.dtype) @ value
