from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from threading import Event

import pytest

from server.engine.host_cache import AdapterKey, HostAdapter, HostCache
from server.engine.request import ArtefactRef, Scope
from server.errors import ModuleCorrupt, ModuleMissing

SIZE = 100


class SlowDisk:
    """Loads that begin at once and end when `open` is set; digests in `broken` or `missing` fail."""

    def __init__(self) -> None:
        self.open = Event()
        self.open.set()
        self.loaded: list[str] = []
        self.broken: set[str] = set()
        self.missing: set[str] = set()

    def load(self, ref: ArtefactRef) -> HostAdapter:
        self.loaded.append(ref.digest)
        assert self.open.wait(5)
        if ref.digest in self.broken:
            raise ModuleCorrupt("damaged")
        if ref.digest in self.missing:
            raise ModuleMissing("absent")
        return HostAdapter(key=AdapterKey.of(ref), scope=Scope.ALL, scaling=1.0, tensors=(), w_km=None, w_ke=None, nbytes=SIZE)


@pytest.fixture
def disk() -> SlowDisk:
    return SlowDisk()


@pytest.fixture
def cache(disk: SlowDisk) -> Iterator[HostCache]:
    cache = HostCache(disk.load, 2 * SIZE)
    yield cache
    cache.close()


def ref(digest: str, composition: str | None = None) -> ArtefactRef:
    return ArtefactRef(digest=digest, manifest_sha256="", directory=Path(digest), composition=composition)


def test_many_who_ask_at_once_share_one_load(cache: HostCache, disk: SlowDisk) -> None:
    disk.open.clear()
    futures = [cache.fetch(ref("a")) for _ in range(5)]
    disk.open.set()
    assert len({id(future.result(5)) for future in futures}) == 1
    assert disk.loaded == ["a"]


def test_asking_does_not_wait_for_the_disk(cache: HostCache, disk: SlowDisk) -> None:
    disk.open.clear()
    assert not cache.fetch(ref("a")).done()
    disk.open.set()


def test_a_loaded_adapter_is_kept(cache: HostCache, disk: SlowDisk) -> None:
    first = cache.fetch(ref("a")).result(5)
    assert cache.fetch(ref("a")).result(0) is first
    assert disk.loaded == ["a"]
    assert cache.stats()["hits"] == 1


def test_the_least_recently_used_leaves_when_the_budget_is_full(cache: HostCache, disk: SlowDisk) -> None:
    for digest in ("a", "b", "a", "c"):
        cache.fetch(ref(digest)).result(5)
    cache.fetch(ref("a")).result(5)
    assert disk.loaded == ["a", "b", "c"]
    cache.fetch(ref("b")).result(5)
    assert disk.loaded == ["a", "b", "c", "b"]
    assert cache.stats()["bytes"] == 2 * SIZE


def test_a_failed_load_is_told_to_all_and_tried_again(cache: HostCache, disk: SlowDisk) -> None:
    disk.broken.add("a")
    disk.open.clear()
    futures = [cache.fetch(ref("a")), cache.fetch(ref("a"))]
    disk.open.set()
    for future in futures:
        assert isinstance(future.exception(5), ModuleCorrupt)
    disk.broken.clear()
    assert cache.fetch(ref("a")).result(5).key.digest == "a"


def test_a_composition_is_part_of_the_identity(cache: HostCache, disk: SlowDisk) -> None:
    assert cache.fetch(ref("a", "one")).result(5) is not cache.fetch(ref("a", "two")).result(5)
    cache.evict(Path("a"))
    assert cache.stats()["adapters"] == 0


def test_equal_bytes_in_two_directories_are_loaded_and_evicted_apart(cache: HostCache, disk: SlowDisk) -> None:
    mine, theirs = ref("a"), replace(ref("a"), directory=Path("theirs"))
    kept = cache.fetch(theirs).result(5)
    assert cache.fetch(mine).result(5) is not kept
    cache.evict(mine.directory)
    assert cache.fetch(theirs).result(0) is kept
    cache.fetch(mine).result(5)
    assert disk.loaded == ["a", "a", "a"]


def test_evicting_during_a_load_serves_those_who_wait_and_keeps_nothing(cache: HostCache, disk: SlowDisk) -> None:
    disk.open.clear()
    waiting = cache.fetch(ref("a"))
    cache.evict(Path("a"))
    disk.open.set()
    assert waiting.result(5).key.digest == "a"
    cache.fetch(ref("a")).result(5)
    assert disk.loaded == ["a", "a"]


class Below(SlowDisk):
    """What lies below the disk; digests in `gone` are not there either."""

    def __init__(self) -> None:
        super().__init__()
        self.gone: set[str] = set()

    def load(self, ref: ArtefactRef) -> HostAdapter:
        if ref.digest in self.gone:
            raise ModuleMissing("gone")
        return super().load(ref)


@pytest.fixture
def below() -> Below:
    return Below()


@pytest.fixture
def tiered(disk: SlowDisk, below: Below) -> Iterator[HostCache]:
    cache = HostCache(disk.load, 9 * SIZE, below.load)
    yield cache
    below.open.set()
    cache.close()


def test_what_is_not_on_the_disk_comes_from_below_it_once(tiered: HostCache, disk: SlowDisk, below: Below) -> None:
    disk.missing = {"b"}
    below.open.clear()
    futures = [tiered.fetch(ref(digest)) for digest in ("a", "b", "b")]
    futures[0].result(5)
    below.open.set()
    assert futures[1].result(5) is futures[2].result(5)
    assert (disk.loaded, below.loaded) == (["a", "b"], ["b"])
    stats = tiered.stats()
    assert (stats["found"], stats["absent"], stats["loads"], stats["load_failures"], stats["loading"]) == (1, 1, 2, 0, 0)


def test_what_is_damaged_on_the_disk_comes_from_below_it(tiered: HostCache, disk: SlowDisk, below: Below) -> None:
    disk.broken.add("a")
    assert tiered.fetch(ref("a")).result(5).key.digest == "a"
    assert tiered.stats()["absent"] == 1


@pytest.mark.parametrize(("how", "error"), [("missing", ModuleMissing), ("broken", ModuleCorrupt)])
def test_what_is_not_below_it_either_is_what_the_disk_said(
    tiered: HostCache, disk: SlowDisk, below: Below, how: str, error: type[Exception]
) -> None:
    getattr(disk, how).add("a")
    below.gone.add("a")
    with pytest.raises(error):
        tiered.fetch(ref("a")).result(5)
    assert tiered.stats()["load_failures"] == 1
    below.gone.clear()
    assert tiered.fetch(ref("a")).result(5)


def test_a_store_that_does_not_answer_holds_up_nothing_on_the_disk(tiered: HostCache, disk: SlowDisk, below: Below) -> None:
    disk.missing = {f"slow-{number}" for number in range(20)}
    below.open.clear()
    slow = [tiered.fetch(ref(digest)) for digest in sorted(disk.missing)]
    assert tiered.fetch(ref("a")).result(5)
    assert not any(future.done() for future in slow)
    assert tiered.stats()["loading"] == 20


def test_what_fails_below_fails_those_who_asked_for_it_alone(tiered: HostCache, disk: SlowDisk, below: Below) -> None:
    disk.missing = {"bad", "good"}
    below.broken.add("bad")
    bad, good = tiered.fetch(ref("bad")), tiered.fetch(ref("good"))
    with pytest.raises(ModuleCorrupt):
        bad.result(5)
    assert good.result(5)


def test_a_cache_that_was_closed_meanwhile_leaves_nobody_waiting(tiered: HostCache, disk: SlowDisk) -> None:
    disk.missing = {"a"}
    disk.open.clear()
    future = tiered.fetch(ref("a"))
    while not disk.loaded:
        pass
    tiered.close()
    disk.open.set()
    with pytest.raises(ModuleMissing):
        future.result(5)


def test_what_follows_a_load_keeps_nobody_waiting_and_follows_no_failure(disk: SlowDisk) -> None:
    may_end, ran, runs = Event(), Event(), []

    def afterwards() -> None:
        runs.append(threading.get_ident())
        assert may_end.wait(5)
        ran.set()

    cache = HostCache(disk.load, 2 * SIZE, afterwards=afterwards)
    try:
        disk.broken.add("bad")
        with pytest.raises(ModuleCorrupt):
            cache.fetch(ref("bad")).result(5)
        assert cache.fetch(ref("a")).result(5)
        assert not ran.is_set()
        may_end.set()
        assert ran.wait(5)
        assert len(runs) == 1
    finally:
        may_end.set()
        cache.close()


def test_what_fails_after_a_load_is_logged_and_the_load_stands(disk: SlowDisk, caplog: pytest.LogCaptureFixture) -> None:
    def afterwards() -> None:
        raise MemoryError

    cache = HostCache(disk.load, 2 * SIZE, afterwards=afterwards)
    assert cache.fetch(ref("a")).result(5)
    cache._loaders.shutdown(wait=True)
    assert "what follows the load of a module failed" in caplog.text
    assert cache.peek(ref("a"))
