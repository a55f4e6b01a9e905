"""Who runs next: places, slots and memory in order of arrival; every running sequence gets its token, prompts share what is left.

Loads do not hold up those behind them. Of the loaded ones the first to find no place, slot or memory holds up all behind it, so
a request waits for the running ones and never for a later one. Knows nothing of models or logits.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass

from server.engine.adapter_pool import AdapterPool
from server.engine.host_cache import HostAdapter
from server.engine.kv_cache import KvCache
from server.engine.options import EngineOptions
from server.engine.sequence import Live, Status


@dataclass(frozen=True, kw_only=True)
class Work:
    """Positions `start .. end - 1` of a sequence, computed in one step; logits are wanted of the last `logits` of them."""

    sequence: Live
    start: int
    end: int

    @property
    def logits(self) -> int:
        return max(0, self.end - max(self.start, self.sequence.wanted))


class Scheduler:
    def __init__(self, options: EngineOptions, adapters: AdapterPool, cache: KvCache) -> None:
        self.waiting: list[Live] = []
        self.running: list[Live] = []
        self._options = options
        self._adapters = adapters
        self.cache = cache

    def __len__(self) -> int:
        return len(self.waiting) + len(self.running)

    def __iter__(self) -> Iterator[Live]:
        yield from self.waiting
        yield from self.running

    def add(self, sequence: Live) -> None:
        self.waiting.append(sequence)

    def plan(self) -> list[Work]:
        """Let sequences join, then share out the step: single tokens first, the same adapters side by side."""
        self._join()
        budget = self._options.step_tokens
        works = []
        for sequence in self.running:
            left = len(sequence.tokens) - sequence.computed
            size = min(left, max(budget, 1 if left == 1 else 0))
            budget -= size
            if size > 0:
                works.append(Work(sequence=sequence, start=sequence.computed, end=sequence.computed + size))
                sequence.written = max(sequence.written, sequence.computed + size)
        return sorted(works, key=lambda work: (work.end - work.start > 1, work.sequence.outfit.order))

    def remove(self, sequence: Live) -> None:
        """Take back all that a sequence holds."""
        sequence.move(Status.FINISHED)
        if sequence not in self.running:
            self.waiting.remove(sequence)
            return
        self.running.remove(sequence)
        assert sequence.held is not None
        self.cache.release(sequence.held, sequence.written)
        self._adapters.release(sequence.outfit)

    def _join(self) -> None:
        for sequence in [sequence for sequence in self.waiting if sequence.loaded]:
            if len(self.running) >= self._options.max_batch or not self._equip(sequence):
                return
            self.waiting.remove(sequence)
            self.running.append(sequence)
            sequence.move(Status.RUNNING)

    def _equip(self, sequence: Live) -> bool:
        held = self.cache.take(sequence.reserve)
        if held is None:
            return False
        outfit = None
        try:
            outfit = self._adapters.wear(_arrived(sequence.module), _arrived(sequence.extractor))
        finally:
            if outfit is None:
                self.cache.release(held, 0)
        if outfit is None:
            return False
        sequence.held, sequence.outfit = held, outfit
        return True


def _arrived(load: Future[HostAdapter] | None) -> HostAdapter | None:
    return None if load is None else load.result()
