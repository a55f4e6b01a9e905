"""A decoding step of fixed shape: every sequence has one new token, all that differs from step to step lies in buffers.

`compute` reads those buffers and does the same operations on the same memory each time, without a choice by what they hold: that is what
a CUDA graph can record (`decoding`). Lanes beyond the step's sequences repeat the first one and are dropped; rows of a pool that are
not asked for see their first key and write back what they held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from server.engine.adapter_bank import AdapterBank
from server.engine.attend import Attend, Kind, Seen
from server.engine.attention import Span, Step
from server.engine.kv_cache import SMALLEST, KvPool
from server.engine.routed_lora import Run
from server.engine.slot_lanes import SlotLanes

Forward = Callable[[Step, Tensor, Tensor, Sequence[SlotLanes]], Tensor]
"""Step, ids `[1, T]`, positions `[1, T]` and adapters to logits `[T, vocabulary]`."""


@dataclass(frozen=True, kw_only=True)
class PoolShape:
    """`memory` names the pool's tensors, of which `rows` rows and `seen` tokens each are read."""

    memory: int
    rows: int
    seen: int


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What decides which operations a step is; `ranks` of the banks' adapters, 0 where none is worn."""

    lanes: int
    pools: tuple[PoolShape, ...]
    ranks: tuple[int, ...]


def shape_of(spans: Sequence[Span], banks: Sequence[AdapterBank], runs: Sequence[Sequence[Run]]) -> Shape:
    pools = tuple(
        PoolShape(
            memory=pool.memory,
            rows=min(_rounded(pool.high), pool.rows),
            seen=min(max(SMALLEST, _rounded(max(span.end for span in spans if span.held.pool is pool))), pool.capacity),
        )
        for pool in pools_of(spans)
    )
    ranks = tuple(_rank(bank, worn) for bank, worn in zip(banks, runs, strict=True))
    return Shape(lanes=_rounded(len(spans)), pools=pools, ranks=ranks)


def pools_of(spans: Sequence[Span]) -> list[KvPool]:
    return sorted({span.held.pool for span in spans}, key=lambda pool: pool.memory)


class DecodeStep:
    """The buffers of one shape."""

    def __init__(
        self, shape: Shape, pools: Sequence[KvPool], banks: Sequence[AdapterBank], attend: Attend, forward: Forward, device: torch.device
    ) -> None:
        self.shape = shape
        self._forward = forward
        self._tokens = torch.zeros(3, shape.lanes, dtype=torch.long, device=device)
        """Ids, positions, and each lane's row among the pools' rows, one pool behind the other."""
        self._pools = [_PoolLanes(pool, wanted, attend, device) for pool, wanted in zip(pools, shape.pools, strict=True)]
        self._banks = [SlotLanes(bank, shape.lanes, rank) if rank else None for bank, rank in zip(banks, shape.ranks, strict=True)]

    @property
    def valid(self) -> bool:
        """Whether the memory it was made for is still that of its pools."""
        return all(lanes.valid for lanes in self._pools)

    def fill(self, ids: Sequence[int], spans: Sequence[Span], runs: Sequence[Sequence[Run]]) -> None:
        """Write a step of this shape into the buffers."""
        rows = {span.offset: row for row, span in self._rows(spans)}
        lanes = [(token, span.start, rows[span.offset]) for token, span in zip(ids, spans, strict=True)]
        lanes += lanes[:1] * (self.shape.lanes - len(lanes))
        self._tokens.copy_(torch.tensor(lanes).T)
        for pool in self._pools:
            pool.fill(spans)
        for bank, worn in zip(self._banks, runs, strict=True):
            if bank is not None:
                bank.fill(worn)

    @torch.no_grad()
    def compute(self) -> Tensor:
        """Logits `[lanes, vocabulary]` of what the buffers hold."""
        adapters = [bank for bank in self._banks if bank is not None]
        for pool in self._pools:
            pool.begin()
        for bank in adapters:
            bank.begin()
        return self._forward(self, self._tokens[:1], self._tokens[1:2], adapters)

    def attend(self, kind: Kind, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        answers = torch.cat([pool.attend(kind, query[0], key[0], value[0]) for pool in self._pools])
        return answers.index_select(0, self._tokens[2]).unsqueeze(0)

    def _rows(self, spans: Sequence[Span]) -> Iterator[tuple[int, Span]]:
        first = 0
        for lanes in self._pools:
            for span in spans:
                if span.held.pool is lanes.pool:
                    yield first + span.held.row, span
            first += lanes.rows


class _PoolLanes:
    """The rows of one pool."""

    def __init__(self, pool: KvPool, shape: PoolShape, attend: Attend, device: torch.device) -> None:
        self.pool = pool
        self.rows = shape.rows
        self._shape = shape
        self._attend = attend
        self._numbers = torch.arange(shape.rows, device=device)
        self._plan = torch.zeros(3, shape.rows, dtype=torch.long, device=device)
        """Each row's lane and position, and whether it is asked for at all."""
        self._seen: dict[int | None, Seen] = {}
        self._writing: Tensor | None = None

    @property
    def valid(self) -> bool:
        return self.pool.memory == self._shape.memory

    def fill(self, spans: Sequence[Span]) -> None:
        plan = [(0, 0, 0)] * self.rows
        for span in spans:
            if span.held.pool is self.pool:
                plan[span.held.row] = (span.offset, span.start, 1)
        self._plan.copy_(torch.tensor(plan).T)

    def begin(self) -> None:
        self._seen = {}
        self._writing = self._plan[2].bool()[:, None, None]

    def attend(self, kind: Kind, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """`query` `[heads, lanes, dim]`, `key`, `value` `[kv heads, lanes, dim]` -> `[rows, heads, dim]`."""
        keys, values = self.pool.layer(kind.layer, key[None], value[None])
        self._store(keys, key)
        self._store(values, value)
        keys, values = keys[: self.rows, :, : self._shape.seen], values[: self.rows, :, : self._shape.seen]
        asking = query.index_select(1, self._plan[0]).transpose(0, 1).unsqueeze(2)
        return self._attend(asking, keys, values, self._seen_by(kind.window), kind).squeeze(2)

    def _store(self, stored: Tensor, new: Tensor) -> None:
        assert self._writing is not None
        offered = new.index_select(1, self._plan[0]).transpose(0, 1)
        kept = stored[self._numbers, :, self._plan[1]]
        stored[self._numbers, :, self._plan[1]] = torch.where(self._writing, offered, kept)

    def _seen_by(self, window: int | None) -> Seen:
        seen = self._seen.get(window)
        if seen is None:
            seen = Seen(starts=self._plan[1], asking=1, first=0, end=self._shape.seen, reach=window, device=self._plan.device)
            self._seen[window] = seen
        return seen


def _rank(bank: AdapterBank, runs: Sequence[Run]) -> int:
    if not runs:
        return 0
    return min(_rounded(max(bank.rank(run.worn.slot) for run in runs)), bank.max_rank)


def _rounded(number: int) -> int:
    """Up to a power of two, that few shapes serve all steps."""
    return 1 << max(0, number - 1).bit_length()
