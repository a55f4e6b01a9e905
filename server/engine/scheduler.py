"""Who runs next: places, slots and memory to the tenants served least; every running sequence gets its token, prompts share what is left.

Within a tenant requests come in order of arrival. Loads do not hold up others. Of the loaded ones the first whose turn it is and who
finds no place, slot or memory holds up all the others, so it waits for running requests and never for one that came later and
has no better claim. A prompt does not compute what another is computing in the same step: it takes that over from the prefix
cache one step later. Knows nothing of models or logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass

from server.engine.adapter_pool import AdapterPool
from server.engine.fairness import Turns
from server.engine.host_cache import HostAdapter
from server.engine.kv_cache import KvCache
from server.engine.options import EngineOptions
from server.engine.prefix_cache import PrefixCache
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
    def __init__(self, options: EngineOptions, adapters: AdapterPool, cache: KvCache, fetch: Callable[[Live], None]) -> None:
        """`fetch` has the adapters of a sequence brought once more, before it joins: it is for one whose slot went to another."""
        self.waiting: list[Live] = []
        self.running: list[Live] = []
        self._options = options
        self._adapters = adapters
        self._fetch = fetch
        self.cache = cache
        self.prefixes = PrefixCache(options.prefix_tokens, options.block_tokens)
        self.turns = Turns()
        self.load_wait = 0.0
        """Seconds that requests which have joined had waited for their adapters to be in host memory."""

    def __len__(self) -> int:
        return len(self.waiting) + len(self.running)

    def __iter__(self) -> Iterator[Live]:
        yield from self.waiting
        yield from self.running

    def add(self, sequence: Live) -> None:
        self.turns.arrive(_tenant(sequence), (_tenant(other) for other in self))
        self.waiting.append(sequence)

    def plan(self) -> list[Work]:
        """Let sequences join, then share out the step: single tokens first, the same adapters side by side."""
        self._join()
        budget = self._options.step_tokens
        works: list[Work] = []
        computing: set[bytes] = set()
        for sequence in self.running:
            self._reuse(sequence)
            size = self._size(sequence, budget, computing)
            budget -= size
            if size > 0:
                works.append(Work(sequence=sequence, start=sequence.computed, end=sequence.computed + size))
                sequence.written = max(sequence.written, sequence.computed + size)
        return sorted(works, key=lambda work: (work.end - work.start > 1, work.sequence.outfit.order))

    def publish(self, sequence: Live, end: int) -> None:
        """Let others use the whole blocks that a sequence has computed before `end`."""
        if sequence.held is not None and (keys := sequence.keys(end)):
            first = sequence.shared
            if len(keys) > first:
                self.prefixes.write(keys, sequence.held, first, _tenant(sequence))
                sequence.shared = len(keys)

    def _reuse(self, sequence: Live) -> None:
        """Take over what others have computed of its next blocks. The last token is always computed, for its logits."""
        if sequence.computed % self.prefixes.block or sequence.computed + self.prefixes.block > sequence.wanted:
            return
        assert sequence.held is not None
        keys = sequence.keys(sequence.wanted)
        blocks = self.prefixes.read(keys, sequence.held, sequence.computed // self.prefixes.block)
        sequence.computed += blocks * self.prefixes.block
        sequence.shared = max(sequence.shared, sequence.computed // self.prefixes.block)
        sequence.written = max(sequence.written, sequence.computed)

    def _size(self, sequence: Live, budget: int, computing: set[bytes]) -> int:
        """Tokens for this step. A part of a prompt ends with a block, so that what follows may be found in the prefix cache; only a
        prompt that would get nothing in a whole step takes less."""
        left, block = len(sequence.tokens) - sequence.computed, self.prefixes.block
        if left == 1 or sequence.chain is None:
            return min(left, max(budget, 1 if left == 1 else 0))
        first = sequence.computed // block
        if not sequence.computed % block and computing.intersection(sequence.keys(min(sequence.computed + block, sequence.wanted))[first:]):
            return 0
        size = max(0, min(left, budget))
        if size < left and (size >= block or budget < self._options.step_tokens - len(self.running)):
            size = max(0, size - (sequence.computed + size) % block)
        computing.update(sequence.keys(min(sequence.computed + size, sequence.wanted))[first:])
        return size

    def remove(self, sequence: Live) -> None:
        """Take back all that a sequence holds."""
        sequence.move(Status.FINISHED)
        sequence.forget_loads()
        if sequence not in self.running:
            self.waiting.remove(sequence)
            return
        self.running.remove(sequence)
        assert sequence.held is not None
        if sequence.complete:
            self.publish(sequence, sequence.computed)
        self.cache.release(sequence.held, sequence.written)
        self._adapters.release(sequence.outfit)

    def _join(self) -> None:
        while (sequence := self.next) and len(self.running) < self._options.max_batch:
            if not self._adapters.can_wear(_arrived(sequence.module), _arrived(sequence.extractor)):
                self._fetch(sequence)
                continue
            if not self._equip(sequence):
                break
            self.waiting.remove(sequence)
            self.running.append(sequence)
            sequence.move(Status.RUNNING)
            sequence.forget_loads()
            self.turns.charge(_tenant(sequence), sequence.cost)
            self.load_wait += sequence.loaded_at - sequence.added_at

    @property
    def next(self) -> Live | None:
        """Whose turn it is to join."""
        return self.turns.first((sequence for sequence in self.waiting if sequence.loaded), _tenant)

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


def _tenant(sequence: Live) -> str:
    return sequence.request.tenant


def _arrived(load: Future[HostAdapter] | None) -> HostAdapter | None:
    return None if load is None else load.result()
