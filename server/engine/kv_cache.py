"""Keys and values of the live sequences: one row per sequence in the pool of its capacity class.

A pool holds, per attention layer, `[rows, kv heads, capacity, head dim]` for keys and for values, so that one batched product
serves all its rows in decode. Layers appear with their first use, in the shapes and dtype the model produces. Knows nothing of
requests, adapters or positions. A row is zeroed when it is released: the next owner shares nothing with the last one, and
positions past a row's end hold finite numbers.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

SMALLEST = 64
"""Tokens of the smallest capacity class; each class doubles the one before."""
_memories = itertools.count()


class KvPool:
    """Rows of one capacity. Grows by doubling; `high` is one past the highest row in use."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.high = 0
        self.memory = next(_memories)
        """Another number once the tensors are others: what was recorded over the old ones is void."""
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}
        self._rows = 1
        self._free = [0]
        self._used: set[int] = set()

    def __len__(self) -> int:
        return len(self._used)

    @property
    def rows(self) -> int:
        """Those there is memory for."""
        return self._rows

    @property
    def full(self) -> bool:
        return not self._free

    def retire(self) -> None:
        """Nobody will use it again."""
        self.memory = next(_memories)

    def take(self) -> int:
        """The lowest free row, so that rows in use stay dense."""
        if not self._free:
            self._grow()
        row = heapq.heappop(self._free)
        self._used.add(row)
        self.high = max(self.high, row + 1)
        return row

    def release(self, row: int, tokens: int) -> None:
        for key, value in self._layers.values():
            key[row, :, :tokens].zero_()
            value[row, :, :tokens].zero_()
        self._used.remove(row)
        heapq.heappush(self._free, row)
        self.high = max(self._used, default=-1) + 1

    @property
    def layers(self) -> Mapping[int, tuple[Tensor, Tensor]]:
        """Those that have been used: `[rows, heads, capacity, dim]` each."""
        return self._layers

    def layer(self, index: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer; `key` and `value` `[any, heads, any, dim]` give the shapes at first use."""
        stored = self._layers.get(index)
        if stored is None:
            stored = self._layers[index] = (self._zeros(key), self._zeros(value))
        return stored

    def _zeros(self, like: Tensor) -> Tensor:
        return like.new_zeros(self._rows, like.shape[1], self.capacity, like.shape[3])

    def _grow(self) -> None:
        # All or nothing: where memory runs out half-way, what is recorded over the old tensors must not seem valid over some new ones.
        self._layers = {
            index: (torch.cat((key, torch.zeros_like(key))), torch.cat((value, torch.zeros_like(value))))
            for index, (key, value) in self._layers.items()
        }
        self._free.extend(range(self._rows, 2 * self._rows))
        self._rows *= 2
        self.memory = next(_memories)


@dataclass(frozen=True, kw_only=True, eq=False)
class KvRow:
    pool: KvPool
    row: int


class KvCache:
    """Hands out rows within a budget of tokens. A pool is freed with its last row; `keep` leaves it, for what is recorded over its memory,
    until that memory is wanted for others."""

    def __init__(self, budget: int, *, keep: bool = False) -> None:
        self.budget = budget
        self.reserved = 0
        self._keep = keep
        self._pools: dict[int, KvPool] = {}

    def take(self, tokens: int) -> KvRow | None:
        """A row for at most `tokens`, or None while the budget is used up."""
        capacity = self._capacity(tokens)
        if self.reserved + capacity > self.budget:
            return None
        pool = self._pools.setdefault(capacity, KvPool(capacity))
        self._make_room(pool)
        row = pool.take()
        self.reserved += capacity
        return KvRow(pool=pool, row=row)

    def release(self, held: KvRow, tokens: int) -> None:
        """Give a row back of which the first `tokens` positions were written."""
        pool = held.pool
        self.reserved -= pool.capacity
        if len(pool) == 1 and not self._keep:
            del self._pools[pool.capacity]
        else:
            pool.release(held.row, tokens)

    def _make_room(self, wanted: KvPool) -> None:
        """Free the pools without rows if those in memory, once `wanted` has one more row, go beyond the budget."""
        growth = wanted.rows * wanted.capacity if wanted.full else 0
        if growth + sum(pool.rows * pool.capacity for pool in self._pools.values()) > self.budget:
            for pool in [pool for pool in self._pools.values() if not len(pool) and pool is not wanted]:
                pool.retire()
                del self._pools[pool.capacity]

    def _capacity(self, tokens: int) -> int:
        return min(max(SMALLEST, 1 << (tokens - 1).bit_length()), self.budget)
