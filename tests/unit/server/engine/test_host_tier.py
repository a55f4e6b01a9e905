"""Adapters between disk and device: what is kept, what is really freed, and whom a load that fails reaches."""

from __future__ import annotations

import errno
import gc
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Barrier, Event
from typing import Any

import pytest
import torch

from server.engine.base_model import BaseModel
from server.engine.embedded import EmbeddedEngine
from server.engine.host_cache import AdapterKey, HostAdapter, HostCache
from server.engine.options import EngineOptions
from server.engine.request import ArtefactRef, Scope, Tier
from server.errors import DocumentNotFound, EngineStopped, KmserveError, ModuleCorrupt, ModuleMissing
from server.modules.artefact import Artefact
from tests.support.engines import Make, answer, finish, spoken, start
from tests.support.oracle import Oracle
from tests.support.tiny_models import Shelf, tiny_artefact, tiny_prompt, tiny_request

SIZE = 100


class Storage:
    """A mebibyte of zeros, that memory profilers and weak references see."""

    def __init__(self) -> None:
        self.tensor = torch.zeros(1 << 18)


@dataclass
class Disk:
    """Loads adapters of `sizes` (SIZE where none is said), or raises what `errors` has for a digest; `open` holds all of them."""

    sizes: dict[str, int] = field(default_factory=dict)
    errors: dict[str, Exception] = field(default_factory=dict)
    loaded: list[str] = field(default_factory=list)
    open: Event = field(default_factory=Event)
    read: list[weakref.ref[Storage]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.open.set()

    def load(self, ref: ArtefactRef) -> HostAdapter:
        self.loaded.append(ref.digest)
        assert self.open.wait(5)
        content = Storage()
        self.read.append(weakref.ref(content))
        if ref.digest in self.errors:
            raise ModuleCorrupt("damaged") from self.errors[ref.digest]
        pair = (content.tensor, content.tensor)
        size = self.sizes.get(ref.digest, SIZE)
        return HostAdapter(key=AdapterKey.of(ref), scope=Scope.ALL, scaling=1.0, tensors=(pair,), w_km=None, w_ke=None, nbytes=size)


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
def cache(disk: Disk) -> Iterator[HostCache]:
    cache = HostCache(disk.load, 2 * SIZE)
    yield cache
    cache.close()


def ref(digest: str) -> ArtefactRef:
    return ArtefactRef(digest=digest, manifest_sha256="", directory=Path(digest))


def loaded(cache: HostCache, digest: str) -> HostAdapter:
    return cache.fetch(ref(digest)).result(5)


def until_idle(cache: HostCache) -> None:
    """The loaders' threads have let go of what they loaded."""
    cache._loaders.shutdown(wait=True)
    gc.collect()


def test_an_adapter_larger_than_the_budget_is_served_and_drives_nothing_out(cache: HostCache, disk: Disk) -> None:
    disk.sizes["large"] = 2 * SIZE + 1
    for digest in ("a", "b", "large", "a", "b"):
        loaded(cache, digest)
    assert disk.loaded == ["a", "b", "large"]
    assert (cache.stats()["bytes"], cache.stats()["evictions"]) == (2 * SIZE, 0)


def test_a_budget_of_nothing_serves_all(disk: Disk) -> None:
    cache = HostCache(disk.load, 0)
    assert loaded(cache, "a").key.digest == loaded(cache, "a").key.digest == "a"
    assert cache.stats()["bytes"] == 0
    cache.close()


def test_what_requests_hold_outlives_its_eviction_and_is_not_read_twice(cache: HostCache, disk: Disk) -> None:
    held = loaded(cache, "held")
    for digest in ("a", "b", "c"):
        loaded(cache, digest)
    assert (cache.stats()["evictions"], cache.stats()["adapters"]) == (2, 2)
    assert held.tensors[0] is not None
    assert loaded(cache, "held") is held
    assert disk.loaded == ["held", "a", "b", "c"]
    assert cache.stats()["bytes"] == 2 * SIZE, "it is kept again, and counted once"


def test_an_adapter_held_past_its_documents_deletion_is_found_by_nobody(cache: HostCache, disk: Disk) -> None:
    held = loaded(cache, "a")
    cache.evict(Path("a"))
    assert cache.directories() == frozenset()
    assert loaded(cache, "a") is not held
    assert disk.loaded == ["a", "a"]


@pytest.mark.parametrize("how", ["evicted", "driven out"])
def test_the_bytes_of_an_adapter_that_left_are_freed(cache: HostCache, how: str) -> None:
    tensor = weakref.ref(_first(loaded(cache, "a")))
    if how == "evicted":
        cache.evict(Path("a"))
    else:
        loaded(cache, "b")
        loaded(cache, "c")
    until_idle(cache)
    assert tensor() is None


def test_the_bytes_of_an_adapter_that_someone_holds_are_freed_after_the_last_one(cache: HostCache) -> None:
    held = [loaded(cache, "a"), loaded(cache, "a")]
    tensor = weakref.ref(_first(held[0]))
    cache.evict(Path("a"))
    until_idle(cache)
    held.pop()
    assert tensor() is not None
    held.pop()
    gc.collect()
    assert tensor() is None


def test_a_failed_load_frees_what_it_had_read_though_its_error_is_kept(cache: HostCache, disk: Disk) -> None:
    disk.errors["a"] = ValueError("a tensor is not finite")
    error = cache.fetch(ref("a")).exception(5)
    assert isinstance(error, ModuleCorrupt)
    assert disk.read[0]() is None
    assert error.__traceback__ is not None, "for the log"


def test_threads_that_ask_at_once_share_one_load(cache: HostCache, disk: Disk) -> None:
    together = Barrier(8)

    def ask(number: int) -> HostAdapter:
        together.wait(5)
        return loaded(cache, f"module-{number % 2}")

    with ThreadPoolExecutor(8) as askers:
        for _ in range(20):
            adapters = list(askers.map(ask, range(8)))
            assert len({id(adapter) for adapter in adapters}) == 2
            assert sorted(disk.loaded) == ["module-0", "module-1"]
            del adapters
            disk.loaded.clear()
            cache.evict(Path("module-0"))
            cache.evict(Path("module-1"))
    assert cache.stats()["loading"] == 0


def test_loads_in_flight_are_counted(cache: HostCache, disk: Disk) -> None:
    disk.open.clear()
    futures = [cache.fetch(ref(digest)) for digest in ("a", "b", "c", "a")]
    assert (cache.stats()["loading"], cache.stats()["misses"]) == (3, 4)
    disk.open.set()
    for future in futures:
        future.result(5)
    stats = cache.stats()
    assert (stats["loading"], stats["loads"], stats["load_failures"]) == (0, 3, 0)
    assert stats["load_seconds"] > 0


def test_a_prefetch_is_no_request(cache: HostCache, disk: Disk) -> None:
    cache.prefetch(ref("a"))
    loaded(cache, "a")
    cache.prefetch(ref("a"))
    assert disk.loaded == ["a"]
    assert cache.stats()["hits"] + cache.stats()["misses"] == 1


def test_a_closed_cache_loads_nothing_and_says_so(cache: HostCache) -> None:
    cache.close()
    cache.prefetch(ref("a"))
    for _ in range(2):
        assert isinstance(cache.fetch(ref("a")).exception(5), EngineStopped)


@dataclass
class FailingShelf(Shelf):
    """`errors`: what reading a digest raises."""

    errors: dict[str, Exception] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()

    def read(self, ref: ArtefactRef, fingerprint: str, shapes: Any, max_rank: int) -> Artefact:
        if ref.digest in self.errors:
            raise self.errors[ref.digest]
        return super().read(ref, fingerprint, shapes, max_rank)


@pytest.fixture
def shelf() -> FailingShelf:
    return FailingShelf()


FAILURES = [
    (OSError(errno.ENOSPC, "No space left on device"), "storage_full"),
    (PermissionError(errno.EACCES, "Permission denied"), "module_unreadable"),
    (OSError(errno.EIO, "Input/output error"), "module_unreadable"),
    (ModuleCorrupt("damaged"), "module_corrupt"),
    (ModuleMissing("gone"), "module_missing"),
]


@pytest.mark.parametrize(("failure", "code"), FAILURES)
def test_a_load_that_fails_reaches_those_who_asked_and_is_tried_again(
    base: BaseModel, make: Make, oracle: Oracle, shelf: FailingShelf, failure: Exception, code: str
) -> None:
    engine = make()
    prompt = tiny_prompt(1)
    bad, good = (shelf.put(name, tiny_artefact(base, seed)) for seed, name in enumerate(("bad", "good")))
    shelf.errors["bad"] = failure
    refused = [start(engine, tiny_request(f"bad-{number}", prompt, bad)) for number in range(2)]
    served = start(engine, tiny_request("good", prompt, good))
    bare = start(engine, tiny_request("bare", prompt))
    finish(engine)
    for ear in refused:
        assert isinstance(ear.error, KmserveError)
        assert ear.error.code == code
        assert "/" not in ear.error.detail
    assert served.tokens == spoken(oracle, prompt, 8, shelf.artefacts["good"])
    assert bare.tokens == spoken(oracle, prompt, 8)
    assert (engine.stats()["host_absent"] > 0) == (code == "module_missing"), "the second may have come too late to share the first load"
    shelf.errors.clear()
    assert answer(engine, tiny_request("again", prompt, bad)).tokens == spoken(oracle, prompt, 8, shelf.artefacts["bad"])


def test_a_request_in_flight_keeps_its_module_while_others_fill_the_host(
    base: BaseModel, make: Make, oracle: Oracle, shelf: FailingShelf
) -> None:
    artefact = tiny_artefact(base, 1)
    engine = make(host_bytes=2 * artefact.nbytes, max_batch=2)
    running = start(engine, tiny_request("running", tiny_prompt(1), shelf.put("mine", artefact)))
    waiting = start(engine, tiny_request("waiting", tiny_prompt(2), shelf.put("mine", artefact)))
    others = [start(engine, tiny_request(str(n), tiny_prompt(n), shelf.put(str(n), tiny_artefact(base, n)))) for n in range(3, 8)]
    finish(engine)
    assert running.tokens == spoken(oracle, tiny_prompt(1), 8, artefact)
    assert waiting.tokens == spoken(oracle, tiny_prompt(2), 8, artefact)
    assert all(other.tokens for other in others)
    assert shelf.reads.count("mine") == 1
    assert engine.stats()["host_evictions"] > 0


def test_residency_names_the_fastest_tier(base: BaseModel, make: Make, shelf: FailingShelf) -> None:
    engine = make(slots=1)
    for number in range(3):
        answer(engine, tiny_request(str(number), tiny_prompt(1), shelf.put(f"module-{number}", tiny_artefact(base, number))))
    held = {Path("module-0"): Tier.HOST, Path("module-1"): Tier.HOST, Path("module-2"): Tier.DEVICE}
    assert engine.residency() == held
    for directory in held:
        engine.evict(directory, DocumentNotFound("deleted"))
    assert engine.residency() == {}


async def test_residency_and_counts_are_read_by_other_threads_while_the_engine_works(base: BaseModel, shelf: FailingShelf) -> None:
    refs = [shelf.put(f"module-{number}", tiny_artefact(base, number)) for number in range(4)]
    engine = EmbeddedEngine(base, options=EngineOptions(slots=2), read=shelf.read)
    engine.start()
    stopped = Event()
    seen: set[Tier] = set()

    def look() -> None:
        while not stopped.is_set():
            seen.update(engine.residency().values())
            engine.stats()

    with ThreadPoolExecutor(1) as onlookers:
        onlooker = onlookers.submit(look)
        for number in range(40):
            engine.prefetch(refs[number % 4])
            async for _ in engine.submit(tiny_request(str(number), tiny_prompt(1), refs[number % 4], max_tokens=1)):
                pass
        stopped.set()
        onlooker.result(5)
    assert seen == {Tier.DEVICE, Tier.HOST}
    assert engine.stats()["host_hits"] + engine.stats()["host_misses"] == 40
    await engine.drain()


def test_the_device_tier_is_counted(base: BaseModel, make: Make, shelf: FailingShelf, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make(slots=1)
    artefact = tiny_artefact(base, 1)
    module = shelf.put("module", artefact)
    answer(engine, tiny_request("a", tiny_prompt(1), module))
    stats = engine.stats()
    assert (stats["slot_bytes"], stats["slot_misses"], stats["slot_load_failures"]) == (2 * artefact.nbytes, 1, 0), "float64 of float32"
    assert stats["slot_load_seconds"] > 0
    engine.evict(module.directory, DocumentNotFound("deleted"))
    assert engine.stats()["slot_bytes"] == 0

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("the device is full")

    monkeypatch.setattr(engine.adapters.modules.bank, "load", full)
    refused = answer(engine, tiny_request("b", tiny_prompt(1), module))
    assert isinstance(refused.error, KmserveError)
    stats = engine.stats()
    assert (stats["slot_load_failures"], stats["slot_loading"], stats["slot_bytes"], stats["module_slots"]) == (1, 0, 0, 0)


def _first(adapter: HostAdapter) -> torch.Tensor:
    pair = adapter.tensors[0]
    assert pair is not None
    return pair[0]
