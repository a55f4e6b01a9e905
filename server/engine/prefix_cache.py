"""Keys and values of whole blocks, kept behind their sequences' ends for others that start the same way.

A sequence computes in a contiguous row of its own (see `kv_cache`); blocks are copied into it when it joins and out of it when they
are complete, so that no block in use can change or go, and attention reads no table. Least recently used blocks leave, the ends of
chains before their beginnings. A block is overwritten as a whole and zeroed when its tenant is forgotten. Knows keys and rows,
nothing of requests. Used by the engine's thread alone.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor

from server.engine.kv_cache import KvRow


class PrefixCache:
    def __init__(self, budget: int, block: int) -> None:
        """`budget`: tokens kept at most, 0 keeps nothing; `block`: tokens of a block."""
        self.block = block
        self._most = budget // block
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}
        self._blocks: OrderedDict[bytes, int] = OrderedDict()
        self._owners: dict[bytes, str] = {}
        self._free: list[int] = []
        self._size = 0
        self._counts = {"hit_tokens": 0.0, "stored_tokens": 0.0, "evicted_tokens": 0.0}

    def __len__(self) -> int:
        return len(self._blocks)

    def __contains__(self, key: bytes) -> bool:
        return key in self._blocks

    def owner(self, key: bytes) -> str | None:
        """Whose block it is; None if it is not here."""
        return self._owners.get(key)

    def whole(self) -> bool:
        """Whether every place is either free or a block's, once."""
        return sorted([*self._free, *self._blocks.values()]) == list(range(self._size)) and self._owners.keys() == self._blocks.keys()

    def read(self, keys: Sequence[bytes], held: KvRow, first: int) -> int:
        """Copy the blocks `keys[first:]`, as far as they are here without a gap, into their places in a row; how many."""
        found = []
        for key in keys[first:]:
            if key not in self._blocks:
                break
            found.append(key)
        if found:
            places = self._index([self._blocks[key] for key in found])
            for layer, stored in self._layers.items():
                for mine, row in zip(stored, self._row(held, layer, stored, first, len(found)), strict=True):
                    row.copy_(mine.index_select(0, places).transpose(0, 1))
            self._touch(keys[: first + len(found)])
            self._counts["hit_tokens"] += self.block * len(found)
        return len(found)

    def write(self, keys: Sequence[bytes], held: KvRow, first: int, owner: str) -> None:
        """Keep the blocks `keys[first:]` of a row. Those that are here already stay; without room the last ones are left out."""
        missing = [number for number in range(first, len(keys)) if keys[number] not in self._blocks][: self._most]
        self._touch(keys[:first])
        places = [self._place(held) for _ in missing]
        if not missing:
            return
        numbers, index = self._index(missing), self._index(places)
        for layer, stored in self._layers.items():
            for mine, row in zip(stored, self._row(held, layer, stored, 0, len(keys)), strict=True):
                mine.index_copy_(0, index, row.index_select(1, numbers).transpose(0, 1))
        for number, place in zip(missing, places, strict=True):
            self._blocks[keys[number]] = place
            self._owners[keys[number]] = owner
        self._touch(keys)
        self._counts["stored_tokens"] += self.block * len(missing)

    def forget(self, owner: str) -> None:
        """Drop and zero every block of a tenant."""
        keys = [key for key, name in self._owners.items() if name == owner]
        if not keys:
            return
        places = [self._blocks.pop(key) for key in keys]
        for key in keys:
            del self._owners[key]
        index = self._index(places)
        for stored in self._layers.values():
            for mine in stored:
                mine.index_fill_(0, index, 0)
        self._free += places

    def stats(self) -> dict[str, float]:
        return {**self._counts, "blocks": float(len(self._blocks)), "bytes": float(self._bytes())}

    def _touch(self, keys: Sequence[bytes]) -> None:
        """The last block first, so that a chain's beginning is never older than its end: without it the end is of no use."""
        for key in reversed(keys):
            if key in self._blocks:
                self._blocks.move_to_end(key)

    def _place(self, held: KvRow) -> int:
        if not self._free and self._size < self._most:
            self._grow(held)
        if not self._free:
            key, place = self._blocks.popitem(last=False)
            del self._owners[key]
            self._counts["evicted_tokens"] += self.block
            return place
        return self._free.pop()

    def _grow(self, held: KvRow) -> None:
        """Twice the blocks: memory is taken as it is needed."""
        size = min(self._most, max(16, 2 * self._size))
        for layer, row in held.pool.layers.items():
            old = self._layers.get(layer)
            grown = [like.new_zeros(size, like.shape[1], self.block, like.shape[3]) for like in row]
            if old is not None:
                for new, mine in zip(grown, old, strict=True):
                    new[: self._size].copy_(mine)
            self._layers[layer] = (grown[0], grown[1])
        self._free.extend(range(size - 1, self._size - 1, -1))
        self._size = size

    def _index(self, numbers: list[int]) -> Tensor:
        device = next(iter(self._layers.values()))[0].device
        return torch.tensor(numbers, dtype=torch.long, device=device)

    def _bytes(self) -> int:
        return sum(tensor.nbytes for stored in self._layers.values() for tensor in stored)

    def _row(self, held: KvRow, layer: int, like: tuple[Tensor, Tensor], first: int, blocks: int) -> tuple[Tensor, Tensor]:
        """A layer's keys and values of a row, as `[heads, blocks, block, dim]` from block `first` on, to read and to write."""
        key, value = held.pool.layer(layer, *like)
        span = slice(first * self.block, (first + blocks) * self.block)
        keys, values = (tensor[held.row, :, span] for tensor in (key, value))
        return self._blocked(keys, blocks), self._blocked(values, blocks)

    def _blocked(self, tokens: Tensor, blocks: int) -> Tensor:
        return tokens.view(tokens.shape[0], blocks, self.block, tokens.shape[2])
