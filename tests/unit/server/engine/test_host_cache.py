from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from threading import Event

import pytest

from server.engine.host_cache import AdapterKey, HostAdapter, HostCache
from server.engine.request import ArtefactRef, Scope
from server.errors import ModuleCorrupt

SIZE = 100


class SlowDisk:
    """Loads that begin at once and end when `open` is set; digests in `broken` fail."""

    def __init__(self) -> None:
        self.open = Event()
        self.open.set()
        self.loaded: list[str] = []
        self.broken: set[str] = set()

    def load(self, ref: ArtefactRef) -> HostAdapter:
        self.loaded.append(ref.digest)
        assert self.open.wait(5)
        if ref.digest in self.broken:
            raise ModuleCorrupt("damaged")
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
