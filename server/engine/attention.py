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
from transformers import AttentionInterface

from server.engine.attend import Attend, Kind, Seen, sdpa
from server.engine.kv_cache import KvPool, KvRow
from server.errors import BaseModelUnusable

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


class Part(Protocol):
    """Some of a step's sequences. `attend` stores their new keys and values and fills their places in `out` `[T, heads, dim]`."""

    def attend(self, kind: Kind, query: Tensor, key: Tensor, value: Tensor, out: Tensor) -> None: ...


class Step(Protocol):
    """What the layers of one forward pass ask: `query` `[1, heads, T, dim]`, `key`, `value` `[1, kv heads, T, dim]` ->
    `[1, T, heads, dim]`."""

    def attend(self, kind: Kind, query: Tensor, key: Tensor, value: Tensor) -> Tensor: ...


class PackedStep:
    """The sequences of one forward pass, any number of new tokens each."""

    def __init__(self, spans: Sequence[Span], device: torch.device, attend: Attend = sdpa) -> None:
        self.spans = spans
        self._parts = _parts(spans, device, attend)
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

    def __init__(self, span: Span, device: torch.device, attend: Attend) -> None:
        self._span = span
        self._device = device
        self._attend = attend
        self._seen: dict[int | None, Seen] = {}

    def attend(self, kind: Kind, query: Tensor, key: Tensor, value: Tensor, out: Tensor) -> None:
        span, row = self._span, self._span.held.row
        keys, values = span.held.pool.layer(kind.layer, key, value)
        new = slice(span.offset, span.offset + span.tokens)
        keys[row, :, span.start : span.end] = key[0, :, new]
        values[row, :, span.start : span.end] = value[0, :, new]
        seen = self._seen_by(kind.window)
        read = slice(seen.first, seen.end)
        result = self._attend(query[:, :, new], keys[row : row + 1, :, read], values[row : row + 1, :, read], seen, kind)
        out[new] = result[0].transpose(0, 1)

    def _seen_by(self, window: int | None) -> Seen:
        seen = self._seen.get(window)
        if seen is None:
            span, first = self._span, max(0, self._span.start - window + 1) if window else 0
            seen = self._seen[window] = Seen(
                starts=(span.start,),
                asking=span.tokens,
                first=first,
                end=span.end,
                reach=window,
                device=self._device,
                ends_there=True,
            )
        return seen


class _Decode:
    """Sequences of one pool with one new token each, in one product over the pool's rows.

    A free row among them repeats the first sequence's question over zeros; its answer is dropped.
    """

    def __init__(self, spans: Sequence[Span], device: torch.device, attend: Attend) -> None:
        self._device = device
        self._attend = attend
        self._pool = spans[0].held.pool
        by_row = {span.held.row: span for span in spans}
        every = [by_row.get(row, spans[0]) for row in range(self._pool.high)]
        self._rows = torch.tensor([span.held.row for span in spans], device=device)
        self._offsets = torch.tensor([span.offset for span in spans], device=device)
        self._starts = torch.tensor([span.start for span in spans], device=device)
        self._asking = torch.tensor([span.offset for span in every], device=device)
        self._asking_at = [span.start for span in every]
        self._first = min(span.start for span in spans)
        self._end = max(span.end for span in spans)
        self._seen: dict[int | None, Seen] = {}

    def attend(self, kind: Kind, query: Tensor, key: Tensor, value: Tensor, out: Tensor) -> None:
        keys, values = self._pool.layer(kind.layer, key, value)
        keys[self._rows, :, self._starts] = key[0].index_select(1, self._offsets).transpose(0, 1)
        values[self._rows, :, self._starts] = value[0].index_select(1, self._offsets).transpose(0, 1)
        seen = self._seen_by(kind.window)
        read = slice(seen.first, seen.end)
        asking = query[0].index_select(1, self._asking).transpose(0, 1).unsqueeze(2)
        high = self._pool.high
        result = self._attend(asking, keys[:high, :, read], values[:high, :, read], seen, kind)
        out.index_copy_(0, self._offsets, result.index_select(0, self._rows).squeeze(2))

    def _seen_by(self, window: int | None) -> Seen:
        seen = self._seen.get(window)
        if seen is None:
            first = max(0, self._first - window + 1) if window else 0
            seen = self._seen[window] = Seen(
                starts=self._asking_at, asking=1, first=first, end=self._end, reach=window, device=self._device
            )
        return seen


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
    """The function transformers calls in each layer: `query` `[1, heads, T, dim]` -> `[1, T, heads, dim]`. Raises BaseModelUnusable for a
    model whose attention has more to it (a mask of its own, sinks, biases of positions)."""
    if attention_mask is not None or others.get("s_aux") is not None or others.get("position_bias") is not None:
        raise BaseModelUnusable(f"{type(module).__name__} attends in a way that packed sequences do not support; use another base model")
    kind = Kind(
        layer=int(module.layer_idx),  # type: ignore[arg-type]
        scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
        window=sliding_window,
        softcap=softcap,
    )
    assert _running.step is not None, "the model is in an engine's hands"
    return _running.step.attend(kind, query, key, value), None


class _Running(threading.local):
    step: Step | None = None


_running = _Running()


@contextmanager
def packing(step: Step) -> Iterator[None]:
    """Within, this thread's forward passes belong to `step`."""
    _running.step = step
    try:
        yield
    finally:
        _running.step = None


def register() -> None:
    """Make `PACKED` known to transformers; twice is as good as once."""
    AttentionInterface.register(PACKED, packed_attention)


def _parts(spans: Sequence[Span], device: torch.device, attend: Attend) -> list[Part]:
    """Sequences that decode together where their pool's rows are dense enough for that to pay, the others one by one."""
    decoding: dict[KvPool, list[Span]] = {}
    parts: list[Part] = []
    for span in spans:
        if span.tokens == 1:
            decoding.setdefault(span.held.pool, []).append(span)
        else:
            parts.append(_Single(span, device, attend))
    for pool, together in decoding.items():
        if len(together) > 2 and 2 * len(together) > pool.high:
            parts.append(_Decode(together, device, attend))
        else:
            parts.extend(_Single(span, device, attend) for span in together)
    return parts
