"""Device memory for adapters: per layer `[slots, rank, in]` and `[slots, rank, out]`, lower ranks padded with zeros.

The rank stands before `out` so that a slot's live rows are one block and neighbouring slots are one batch without a copy. Memory is
taken with the first adapter and touched only where a slot is used: an engine that serves the base model alone pays nothing. Knows
nothing of who uses a slot.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Product = tuple[Tensor, Tensor]
"""`x @ down @ up` is a layer's product: `[..., in, rank]` and `[..., rank, out]`."""


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class _Rows:
    """Views of one layer of a slot: its first `rank` rows, and the rest of those `written`."""

    rank: int
    written: int
    a: Tensor
    b: Tensor
    rest: Sequence[Tensor]
    product: Product


class AdapterBank:
    def __init__(
        self,
        *,
        slots: int,
        max_rank: int,
        shapes: Sequence[tuple[int, int]],
        dtype: torch.dtype,
        device: torch.device,
        readable: bool = False,
    ) -> None:
        """`shapes`: `(out, in)` of each layer. `readable`: all of it holds numbers from its first adapter on, for `slots_at`."""
        self.slots = slots
        self.dtype = dtype
        self.device = device
        self._max_rank = max_rank
        self._shapes = shapes
        self._stored: list[Product] = []
        self._ranks = [0] * slots
        self._readable = readable
        self._written = [max_rank if readable else 0] * slots
        """Rows of each slot that hold numbers; those behind them are unwritten memory."""
        self._products: list[list[Product | None]] = [[None] * len(shapes) for _ in range(slots)]
        self._rows: list[list[_Rows | None]] = [[None] * len(shapes) for _ in range(slots)]
        """What a slot was last written through: to make these views again for each layer takes longer than the copying."""

    @property
    def layers(self) -> int:
        return len(self._shapes)

    @property
    def max_rank(self) -> int:
        return self._max_rank

    def rank(self, slot: int) -> int:
        return self._ranks[slot]

    def slots_at(self, layer: int, rank: int) -> Product:
        """All slots of a layer, `[slots, rank, in]` and `[slots, rank, out]`, where a slot's rank ends in zeros."""
        a, b = self._stored[layer]
        return a[:, :rank], b[:, :rank]

    def load(self, slot: int, tensors: Sequence[Product | None]) -> None:
        """Overwrite a slot with `(a [rank, in], b [rank, out])` per layer; None leaves a layer without an adapter."""
        if not self._stored:
            self._stored = [(self._empty(fan_in), self._empty(fan_out)) for fan_out, fan_in in self._shapes]
        rank = self._ranks[slot] = max((len(pair[0]) for pair in tensors if pair), default=0)
        self._written[slot] = max(self._written[slot], rank)
        for layer, pair in enumerate(tensors):
            self._write(slot, layer, pair)

    def clear(self, slot: int) -> None:
        """Zero a slot."""
        self._ranks[slot] = 0
        for layer in range(len(self._stored)):
            self._write(slot, layer, None)

    def products(self, slot: int) -> Sequence[Product | None]:
        """Each layer's product of one slot, None where it has no adapter."""
        return self._products[slot]

    def range(self, first: int, end: int) -> list[Product]:
        """Each layer's products of the slots `first .. end - 1`, as wide as the highest rank among them."""
        rank = max(self._ranks[first:end])
        for slot in range(first, end):
            self._pad(slot, rank)
        return [(a[first:end, :rank].transpose(1, 2), b[first:end, :rank]) for a, b in self._stored]

    def _write(self, slot: int, layer: int, pair: Product | None) -> None:
        rank, written = len(pair[0]) if pair else 0, self._written[slot]
        rows = self._rows[slot][layer]
        if rows is None or (rows.rank, rows.written) != (rank, written):
            rows = self._rows[slot][layer] = self._rows_of(slot, layer, rank, written)
        if pair:
            rows.a.copy_(pair[0], non_blocking=True)
            rows.b.copy_(pair[1], non_blocking=True)
        for rest in rows.rest:
            rest.zero_()
        self._products[slot][layer] = rows.product if pair else None

    def _rows_of(self, slot: int, layer: int, rank: int, written: int) -> _Rows:
        a, b = (stored[slot, :written] for stored in self._stored[layer])
        rest = (a[rank:], b[rank:]) if rank < written else ()
        return _Rows(rank=rank, written=written, a=a[:rank], b=b[:rank], rest=rest, product=(a[:rank].T, b[:rank]))

    def _pad(self, slot: int, rank: int) -> None:
        """Make rows up to `rank` readable."""
        if self._written[slot] < rank:
            for a, b in self._stored:
                a[slot, self._written[slot] : rank].zero_()
                b[slot, self._written[slot] : rank].zero_()
            self._written[slot] = rank

    def _empty(self, width: int) -> Tensor:
        take = torch.zeros if self._readable else torch.empty
        return take(self.slots, self._max_rank, width, dtype=self.dtype, device=self.device)
