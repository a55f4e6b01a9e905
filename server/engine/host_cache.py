"""Adapters in host memory: validated, in the model's dtype, ready to be copied into a slot.

Loads run on threads of their own, one per artefact however many ask at once. Least recently used adapters leave when the budget of
bytes is exceeded; whoever still holds one keeps it alive, and meanwhile nobody reads it a second time. A failed load is forgotten, so
the next request tries again. What is not on the disk, or damaged there, is loaded from below it where there is such a tier, on other
threads: a slow object store holds up no load from the disk. Knows nothing of slots or requests; any thread may call it.
"""

from __future__ import annotations

import logging
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from weakref import WeakValueDictionary

import torch

from server.engine.adapter_bank import Product
from server.engine.apart import apart
from server.engine.request import ArtefactRef, Scope
from server.errors import EngineStopped, ModuleCorrupt, ModuleMissing

logger = logging.getLogger(__name__)

LOADERS = 2
FETCHERS = 4


@dataclass(frozen=True, kw_only=True)
class AdapterKey:
    """Which artefact an adapter is. The directory is part of it: equal bytes of two owners are two adapters, that nothing be shared
    across tenants. A composition is too: new weights over the same lora are another adapter."""

    directory: Path
    digest: str
    composition: str | None

    @classmethod
    def of(cls, ref: ArtefactRef) -> AdapterKey:
        return cls(directory=ref.directory, digest=ref.digest, composition=ref.composition)


@dataclass(frozen=True, kw_only=True, eq=False)
class HostAdapter:
    """`tensors` and the weights stand in the order of the model's adapted layers. `w_km` and `w_ke` are an extractor's composition. Without
    any `tensors`, they lie in a slot alone."""

    key: AdapterKey
    scope: Scope
    scaling: float
    tensors: tuple[Product | None, ...]
    w_km: tuple[float, ...] | None
    w_ke: tuple[float, ...] | None
    nbytes: int

    def without_tensors(self) -> HostAdapter:
        return replace(self, tensors=())


Load = Callable[[ArtefactRef], HostAdapter]
Outcome = HostAdapter | Exception


class HostCache:
    def __init__(self, load: Load, budget: int, below: Load | None = None, afterwards: Callable[[], None] = lambda: None) -> None:
        """`load` reads from the disk, `below` from what lies below it; `afterwards` runs on a load's thread once those who waited for that
        load have it."""
        self._load = load
        self._below = below
        self._afterwards = afterwards
        self._budget = budget
        self._lock = Lock()
        self._kept: OrderedDict[AdapterKey, HostAdapter] = OrderedDict()
        self._bytes = 0
        """Of those that are kept."""
        self._alive: WeakValueDictionary[AdapterKey, HostAdapter] = WeakValueDictionary()
        """Those that are kept, and those that are not and that someone holds."""
        self._loading: dict[AdapterKey, Future[HostAdapter]] = {}
        self._in_flight = 0
        self._loaders = ThreadPoolExecutor(LOADERS, thread_name_prefix="adapter-load", initializer=_alone)
        self._fetchers = ThreadPoolExecutor(FETCHERS, thread_name_prefix="adapter-fetch", initializer=_alone)
        names = ("hits", "misses", "evictions", "loads", "load_failures", "load_seconds", "found", "absent")
        self._counts = dict.fromkeys(names, 0.0)

    def fetch(self, ref: ArtefactRef) -> Future[HostAdapter]:
        """The adapter now or later, for a request; the future raises what loading raised."""
        with self._lock:
            future, found = self._find(ref)
            self._counts["hits" if found else "misses"] += 1
            return future

    def prefetch(self, ref: ArtefactRef) -> None:
        """Have it loaded for a request that is to come; neither hit nor miss, for that request will be."""
        with self._lock:
            self._find(ref)

    def peek(self, ref: ArtefactRef) -> HostAdapter | None:
        """The adapter if it is here, counted for nothing; whoever holds it finds it by `fetch` too."""
        with self._lock:
            return self._alive.get(AdapterKey.of(ref))

    def evict(self, directory: Path) -> None:
        """Forget the artefact of this directory; a load in progress is finished for those who hold its future, and is not kept."""
        with self._lock:
            for key in [key for key in self._alive if key.directory == directory]:
                self._drop(key)
                self._alive.pop(key, None)
            for loading in [key for key in self._loading if key.directory == directory]:
                del self._loading[loading]

    def directories(self) -> frozenset[Path]:
        """Of the artefacts that would be found without a load."""
        with self._lock:
            return frozenset(key.directory for key in self._alive)

    def stats(self) -> dict[str, float]:
        """`found` are loads from the disk; `absent` those that did not find the artefact there."""
        with self._lock:
            now = {"bytes": self._bytes, "adapters": len(self._kept), "loading": self._in_flight}
            return {**self._counts, **{name: float(value) for name, value in now.items()}}

    def close(self) -> None:
        for threads in (self._loaders, self._fetchers):
            threads.shutdown(wait=False, cancel_futures=True)

    def _find(self, ref: ArtefactRef) -> tuple[Future[HostAdapter], bool]:
        """The adapter's future, and whether it was here already."""
        key = AdapterKey.of(ref)
        future: Future[HostAdapter] = Future()
        adapter = self._alive.get(key)
        if adapter is not None:
            self._keep(adapter)
            future.set_result(adapter)
            return future, True
        if key in self._loading:
            return self._loading[key], False
        try:
            self._loaders.submit(self._run, key, ref, future)
        except RuntimeError:  # the pool's way to say that it was shut down
            future.set_exception(EngineStopped("The engine is stopping; try again when the server is back."))
            return future, False
        self._loading[key] = future
        self._in_flight += 1
        return future, False

    def _run(self, key: AdapterKey, ref: ArtefactRef, future: Future[HostAdapter]) -> None:
        """Load from the disk, or have it loaded from below it."""
        started = time.perf_counter()
        outcome = _tried(self._load, ref)
        missed = isinstance(outcome, ModuleMissing | ModuleCorrupt)
        with self._lock:
            self._counts["found"] += isinstance(outcome, HostAdapter)
            self._counts["absent"] += isinstance(outcome, ModuleMissing) or (missed and self._below is not None)
        if self._below is None or not missed:
            self._settle(key, future, outcome, time.perf_counter() - started)
            return
        try:
            self._fetchers.submit(self._run_below, self._below, key, ref, future, outcome)
        except RuntimeError:  # shut down
            self._settle(key, future, outcome, time.perf_counter() - started)

    def _run_below(self, below: Load, key: AdapterKey, ref: ArtefactRef, future: Future[HostAdapter], missed: Outcome) -> None:
        started = time.perf_counter()
        outcome = _tried(below, ref)
        # What is damaged on the disk and nowhere else is damaged, not missing.
        self._settle(key, future, missed if isinstance(outcome, ModuleMissing) else outcome, time.perf_counter() - started)

    def _settle(self, key: AdapterKey, future: Future[HostAdapter], outcome: Outcome, seconds: float) -> None:
        with self._lock:
            self._in_flight -= 1
            self._counts["load_failures" if isinstance(outcome, Exception) else "loads"] += 1
            self._counts["load_seconds"] += seconds
            if self._loading.get(key) is future:
                del self._loading[key]
                if isinstance(outcome, HostAdapter):
                    self._alive[key] = outcome
                    self._keep(outcome)
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
            self._follow()

    def _follow(self) -> None:
        try:
            self._afterwards()
        except Exception:
            logger.exception("what follows the load of a module failed; the module is there")

    def _keep(self, adapter: HostAdapter) -> None:
        """As the most recently used; one larger than the whole budget drives nothing out and is not kept."""
        if adapter.nbytes > self._budget:
            return
        if adapter.key not in self._kept:
            self._kept[adapter.key] = adapter
            self._bytes += adapter.nbytes
        self._kept.move_to_end(adapter.key)
        while self._bytes > self._budget:
            self._drop(next(iter(self._kept)))
            self._counts["evictions"] += 1

    def _drop(self, key: AdapterKey) -> None:
        adapter = self._kept.pop(key, None)
        if adapter is not None:
            self._bytes -= adapter.nbytes


def _tried(load: Load, ref: ArtefactRef) -> Outcome:
    try:
        return load(ref)
    except Exception as error:
        _let_go(error)
        return error


def _let_go(error: BaseException) -> None:
    """Free what a failed load had in hand, files and tensors: its error may be kept for long, and keeps the frames it came through."""
    found: BaseException | None = error
    while found is not None:
        traceback.clear_frames(found.__traceback__)
        found = found.__cause__ or found.__context__


def _alone() -> None:
    """A loader computes on its own: a team of threads would stay as long as it does, and hold up the engine's (see `apart`). What torch
    takes for the number of threads of those that begin later is put back, for it is the process's."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    apart(torch.set_num_threads, before)
