"""Adapters in host memory: validated, in the model's dtype, ready to be copied into a slot.

Loads run on threads of their own, one per artefact however many ask at once. Least recently used adapters leave when the budget of
bytes is exceeded; whoever still holds one keeps it alive. A failed load is forgotten, so the next request tries again. Knows
nothing of slots or requests; any thread may call it.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from server.engine.adapter_bank import Product
from server.engine.request import ArtefactRef, Scope

LOADERS = 2


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
    """`tensors` and the weights stand in the order of the model's adapted layers. `w_km` and `w_ke` are an extractor's composition."""

    key: AdapterKey
    scope: Scope
    scaling: float
    tensors: tuple[Product | None, ...]
    w_km: tuple[float, ...] | None
    w_ke: tuple[float, ...] | None
    nbytes: int


Load = Callable[[ArtefactRef], HostAdapter]


class HostCache:
    def __init__(self, load: Load, budget: int) -> None:
        self._load = load
        self._budget = budget
        self._lock = Lock()
        self._kept: OrderedDict[AdapterKey, HostAdapter] = OrderedDict()
        self._loading: dict[AdapterKey, Future[HostAdapter]] = {}
        self._loaders = ThreadPoolExecutor(LOADERS, thread_name_prefix="adapter-load")
        self._counts = {"hits": 0.0, "misses": 0.0, "loads": 0.0, "load_failures": 0.0, "load_seconds": 0.0}

    def fetch(self, ref: ArtefactRef) -> Future[HostAdapter]:
        """The adapter now or later; the future raises what loading raised."""
        key = AdapterKey.of(ref)
        with self._lock:
            kept = self._kept.get(key)
            self._counts["misses" if kept is None else "hits"] += 1
            if kept is not None:
                self._kept.move_to_end(key)
                return _done(kept)
            if key not in self._loading:
                future: Future[HostAdapter] = Future()
                self._loading[key] = future
                self._loaders.submit(self._run, key, ref, future)
            return self._loading[key]

    def evict(self, directory: Path) -> None:
        """Forget the artefact of this directory; a load in progress is finished for those who hold its future, and is not kept."""
        with self._lock:
            for kept in [key for key in self._kept if key.directory == directory]:
                del self._kept[kept]
            for loading in [key for key in self._loading if key.directory == directory]:
                del self._loading[loading]

    def stats(self) -> dict[str, float]:
        with self._lock:
            return {**self._counts, "bytes": float(self._bytes()), "adapters": float(len(self._kept))}

    def close(self) -> None:
        self._loaders.shutdown(wait=False, cancel_futures=True)

    def _run(self, key: AdapterKey, ref: ArtefactRef, future: Future[HostAdapter]) -> None:
        started = time.perf_counter()
        try:
            adapter = self._load(ref)
        except Exception as error:
            self._settle(key, future, None, time.perf_counter() - started)
            future.set_exception(error)
        else:
            self._settle(key, future, adapter, time.perf_counter() - started)
            future.set_result(adapter)

    def _settle(self, key: AdapterKey, future: Future[HostAdapter], adapter: HostAdapter | None, seconds: float) -> None:
        with self._lock:
            self._counts["loads" if adapter else "load_failures"] += 1
            self._counts["load_seconds"] += seconds
            if self._loading.get(key) is not future:
                return
            del self._loading[key]
            if adapter is not None:
                self._keep(adapter)

    def _keep(self, adapter: HostAdapter) -> None:
        self._kept[adapter.key] = adapter
        while self._bytes() > self._budget:
            self._kept.popitem(last=False)

    def _bytes(self) -> int:
        return sum(adapter.nbytes for adapter in self._kept.values())


def _done(adapter: HostAdapter) -> Future[HostAdapter]:
    future: Future[HostAdapter] = Future()
    future.set_result(adapter)
    return future
