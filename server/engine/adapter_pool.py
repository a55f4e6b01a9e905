"""Which adapter is in which slot: reference counts, least recently used first out, eviction that waits for the last user.

Used by the engine's thread alone, but that any thread may read `keys`, `resident` and the counts. Knows adapters and slots, nothing of
files or requests.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from server.engine.adapter_bank import AdapterBank
from server.engine.host_cache import AdapterKey, HostAdapter
from server.engine.request import ArtefactRef
from server.engine.routed_lora import Worn


class SlotPool:
    """The slots of one bank."""

    def __init__(self, bank: AdapterBank) -> None:
        self.bank = bank
        self.hits = self.misses = self.evictions = self.load_failures = self.loading = 0
        self.load_seconds = 0.0
        self.keys: frozenset[AdapterKey] = frozenset()
        """Of the artefacts that new requests find in a slot; replaced whole, never changed."""
        self._bytes = [0] * bank.slots
        self._adapters: list[HostAdapter | None] = [None] * bank.slots
        """What was last loaded into each slot, without its tensors."""
        self._slots: OrderedDict[AdapterKey, int] = OrderedDict()
        self._users = [0] * bank.slots
        self._doomed: set[int] = set()

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def bytes(self) -> int:
        """What lies in slots, without the room that lower ranks leave."""
        return sum(self._bytes)

    @property
    def users(self) -> Sequence[int]:
        """How many sequences hold each slot."""
        return self._users

    @property
    def resident(self) -> frozenset[Path]:
        """Directories of the artefacts that new requests find in a slot."""
        return frozenset(key.directory for key in self.keys)

    def find(self, ref: ArtefactRef) -> HostAdapter | None:
        """What lies in a slot, without its tensors: enough to take that slot, as long as no other adapter does."""
        slot = self._slots.get(AdapterKey.of(ref))
        return None if slot is None else self._adapters[slot]

    def can_load(self, adapter: HostAdapter) -> bool:
        """Whether it has its tensors with it, or they lie in a slot still."""
        return bool(adapter.tensors) or adapter.key in self._slots

    def take(self, adapter: HostAdapter) -> int | None:
        """The adapter's slot, held until `release`; None while every slot is held by others."""
        slot = self._slots.get(adapter.key)
        if slot is None:
            slot = self._room()
            if slot is None:
                return None
            self.misses += 1
            self._load(slot, adapter)
        else:
            self.hits += 1
        self._slots.move_to_end(adapter.key)
        self._users[slot] += 1
        return slot

    def wear(self, adapter: HostAdapter, factors: tuple[float, ...]) -> Worn | None:
        slot = self.take(adapter)
        return None if slot is None else Worn(slot=slot, factors=factors, scope=adapter.scope)

    def release(self, slot: int) -> None:
        self._users[slot] -= 1
        if slot in self._doomed and not self._users[slot]:
            self._doomed.remove(slot)
            self._clear(slot)

    def evict(self, directory: Path) -> None:
        """No new request finds the artefact; its slot is zeroed once its last user has gone."""
        for key in [key for key in self._slots if key.directory == directory]:
            slot = self._slots.pop(key)
            if self._users[slot]:
                self._doomed.add(slot)
            else:
                self._clear(slot)
        self._tell()

    def _load(self, slot: int, adapter: HostAdapter) -> None:
        """On a GPU the seconds are those of starting the copies, which steps are queued behind."""
        started = time.perf_counter()
        self.loading = 1
        self._bytes[slot] = 0
        try:
            self.bank.load(slot, adapter.tensors)
            self._bytes[slot] = adapter.nbytes
            self._adapters[slot] = adapter.without_tensors()
            self._slots[adapter.key] = slot
        except Exception:
            self.load_failures += 1
            raise
        finally:
            self.loading = 0
            self.load_seconds += time.perf_counter() - started
            self._tell()

    def _clear(self, slot: int) -> None:
        self.bank.clear(slot)
        self._bytes[slot] = 0

    def _tell(self) -> None:
        self.keys = frozenset(self._slots)

    def _room(self) -> int | None:
        """The lowest empty slot, else the least recently used one that nobody holds."""
        taken = {*self._slots.values(), *self._doomed}
        empty = next((slot for slot in range(self.bank.slots) if slot not in taken), None)
        if empty is not None:
            return empty
        idle = next((key for key, slot in self._slots.items() if not self._users[slot]), None)
        if idle is None:
            return None
        self.evictions += 1
        return self._slots.pop(idle)


@dataclass(frozen=True, kw_only=True)
class Outfit:
    """What one sequence wears; each adapter acts in its own scope."""

    module: Worn | None = None
    extractor: Worn | None = None

    @property
    def order(self) -> tuple[int, int]:
        """Sequences sorted by this have the same adapters side by side."""
        return (self.extractor.slot if self.extractor else -1, self.module.slot if self.module else -1)


class AdapterPool:
    """Slots for modules and, apart, for extractors."""

    def __init__(self, modules: AdapterBank, extractors: AdapterBank) -> None:
        self.modules = SlotPool(modules)
        self.extractors = SlotPool(extractors)

    def can_wear(self, module: HostAdapter | None, extractor: HostAdapter | None) -> bool:
        """False where a slot was all that had the tensors of one, and has gone to another."""
        sides = ((self.modules, module), (self.extractors, extractor))
        return all(pool.can_load(adapter) for pool, adapter in sides if adapter)

    def wear(self, module: HostAdapter | None, extractor: HostAdapter | None) -> Outfit | None:
        """Slots for both, which `can_wear` must allow, or None. The extractor's composition weighs the two; a module alone counts fully."""
        worn = self.modules.wear(module, self._factors(module, extractor.w_km if extractor else None)) if module else None
        if module and worn is None:
            return None
        try:
            ke = self.extractors.wear(extractor, self._factors(extractor, extractor.w_ke)) if extractor else None
        except BaseException:
            if worn:
                self.modules.release(worn.slot)
            raise
        if extractor and ke is None:
            if worn:
                self.modules.release(worn.slot)
            return None
        return Outfit(module=worn, extractor=ke)

    def release(self, outfit: Outfit) -> None:
        if outfit.module:
            self.modules.release(outfit.module.slot)
        if outfit.extractor:
            self.extractors.release(outfit.extractor.slot)

    def evict(self, directory: Path) -> None:
        self.modules.evict(directory)
        self.extractors.evict(directory)

    @property
    def keys(self) -> frozenset[AdapterKey]:
        return self.modules.keys | self.extractors.keys

    @property
    def resident(self) -> frozenset[Path]:
        return self.modules.resident | self.extractors.resident

    def stats(self) -> dict[str, float]:
        counts = ("hits", "misses", "evictions", "load_seconds", "load_failures", "loading", "bytes")
        return {
            "module_slots": float(len(self.modules)),
            "extractor_slots": float(len(self.extractors)),
            **{f"slot_{name}": float(getattr(self.modules, name) + getattr(self.extractors, name)) for name in counts},
        }

    def _factors(self, adapter: HostAdapter, weights: tuple[float, ...] | None) -> tuple[float, ...]:
        """`w[l]·s` of each layer; weight 1 without a composition."""
        return tuple(weight * adapter.scaling for weight in weights or (1.0,) * self.modules.bank.layers)
