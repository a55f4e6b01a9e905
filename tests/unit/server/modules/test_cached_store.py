"""The directory as a cache of an object store: what is uploaded, fetched, driven out and deleted, and what goes wrong on the way."""

from __future__ import annotations

import hashlib
import os
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from server.errors import ObjectStoreUnavailable
from server.modules.cached_store import CachedStore
from tests.support.object_stores import FaultyObjects, replica
from tests.support.training_rig import eventually

TENANT, DOCUMENT = "t1", "doc_1"
DIGESTS = [f"{number}" * 64 for number in range(10)]
SIZE = 100


@pytest.fixture
def objects() -> FaultyObjects:
    return FaultyObjects()


@pytest.fixture
def here(tmp_path: Path, objects: FaultyObjects) -> CachedStore:
    return replica(tmp_path / "here", objects)


@pytest.fixture
def there(tmp_path: Path, objects: FaultyObjects) -> CachedStore:
    return replica(tmp_path / "there", objects)


def staged(store: CachedStore, manifest: str = "{}", document: str = DOCUMENT) -> Path:
    """An artefact of `SIZE` bytes."""
    folder = store.staging(TENANT, document)
    (folder / "manifest.json").write_text(manifest)
    (folder / "adapter_model.safetensors").write_bytes(bytes(SIZE - len(manifest)))
    return folder


def publish(store: CachedStore, number: int = 0, manifest: str = "{}", document: str = DOCUMENT) -> Path:
    folder, target = staged(store, manifest, document), store.path(TENANT, document, DIGESTS[number])
    store.upload(folder, target)
    return store.publish(folder, TENANT, document, DIGESTS[number])


def sha256(manifest: str = "{}") -> str:
    return hashlib.sha256(manifest.encode()).hexdigest()


def fetch(store: CachedStore, number: int = 0, manifest: str = "{}") -> Path:
    directory = store.path(TENANT, DOCUMENT, DIGESTS[number])
    with store.fetched(directory, sha256(manifest)) as copy:
        store.place(copy, directory)
    return directory


def on_disk(store: CachedStore) -> list[int]:
    return [number for number, digest in enumerate(DIGESTS) if store.path(TENANT, DOCUMENT, digest).is_dir()]


def age(store: CachedStore, number: int, seconds: int) -> None:
    os.utime(store.path(TENANT, DOCUMENT, DIGESTS[number]), (seconds, seconds))


def files(directory: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in directory.iterdir()}


def test_what_one_machine_publishes_another_fetches(here: CachedStore, there: CachedStore) -> None:
    published, fetched = publish(here), fetch(there)
    assert published != fetched
    assert files(published) == files(fetched)
    assert [path.name for path in fetched.parent.iterdir()] == [DIGESTS[0]]


def test_the_manifest_is_written_last(here: CachedStore, objects: FaultyObjects) -> None:
    publish(here)
    written = [asked.rpartition("/")[2] for asked in objects.asked if asked.startswith("put")]
    assert written == ["adapter_model.safetensors", "manifest.json"]


def test_a_torn_upload_is_no_artefact_and_is_completed_by_the_next(here: CachedStore, there: CachedStore, objects: FaultyObjects) -> None:
    objects.puts = 1
    with pytest.raises(ObjectStoreUnavailable):
        publish(here)
    target = there.path(TENANT, DOCUMENT, DIGESTS[0])
    assert objects.objects.list("tenants")
    assert not there.has(target, sha256())
    assert there.below(TENANT) == frozenset()
    with pytest.raises(FileNotFoundError):
        fetch(there)
    objects.puts = None
    publish(here)
    assert there.has(target, sha256())
    assert there.below(TENANT) == {target}


def test_equal_tensors_of_two_attempts_never_write_over_one_another(here: CachedStore, there: CachedStore) -> None:
    publish(here, manifest='{"at":1}')
    publish(there, manifest='{"at":2}')
    for store, manifest in ((here, '{"at":2}'), (there, '{"at":1}')):
        assert (fetch(store, manifest=manifest) / "manifest.json").read_text() == manifest
    there.withdraw(there.path(TENANT, DOCUMENT, DIGESTS[0]), sha256('{"at":2}'))
    assert (fetch(there, manifest='{"at":1}') / "manifest.json").read_text() == '{"at":1}'


def test_what_publishing_finds_in_place_is_uploaded_too(here: CachedStore, there: CachedStore, objects: FaultyObjects) -> None:
    """It is what the row will name."""
    here.publish(staged(here, "[1]"), TENANT, DOCUMENT, DIGESTS[0])
    assert (publish(here, manifest="[2]") / "manifest.json").read_text() == "[1]"
    assert (fetch(there, manifest="[1]") / "manifest.json").read_text() == "[1]"


def test_what_is_not_there_leaves_nothing_behind(there: CachedStore) -> None:
    directory = there.path(TENANT, DOCUMENT, DIGESTS[0])
    with pytest.raises(FileNotFoundError):
        fetch(there)
    assert not directory.parent.exists()
    assert (there.stats()["store_misses"], there.stats()["disk_load_failures"]) == (1, 1)


def test_an_object_that_goes_missing_on_the_way_leaves_nothing_behind(
    here: CachedStore, there: CachedStore, objects: FaultyObjects
) -> None:
    publish(here)
    objects.before_get = objects.objects.delete
    with pytest.raises(FileNotFoundError):
        fetch(there)
    assert not there.path(TENANT, DOCUMENT, DIGESTS[0]).parent.exists()


def test_what_was_not_proven_is_not_placed(here: CachedStore, there: CachedStore) -> None:
    publish(here)
    directory = there.path(TENANT, DOCUMENT, DIGESTS[0])
    with pytest.raises(ValueError, match="forged"), there.fetched(directory, sha256()):
        raise ValueError("forged")
    assert not directory.parent.exists()


def test_a_deletion_takes_along_what_is_being_fetched(here: CachedStore, there: CachedStore, objects: FaultyObjects) -> None:
    publish(here)
    directory = there.path(TENANT, DOCUMENT, DIGESTS[0])
    with there.fetched(directory, sha256()) as copy:
        there.delete_document(TENANT, DOCUMENT)
        with pytest.raises(FileNotFoundError):
            there.place(copy, directory)
    assert not directory.parent.exists()
    assert objects.list("") == []


def test_deletion_removes_the_objects_of_that_document_alone(here: CachedStore, objects: FaultyObjects) -> None:
    publish(here)
    publish(here, 1)
    kept = publish(here, document="doc_10")
    here.delete_document(TENANT, DOCUMENT)
    assert on_disk(here) == []
    assert objects.list("")
    assert all("/doc_10/" in key for key in objects.list(""))
    assert here.has(kept, sha256())


def test_deleting_one_version_removes_its_objects(here: CachedStore, objects: FaultyObjects) -> None:
    publish(here)
    publish(here, 1)
    here.delete(TENANT, DOCUMENT, DIGESTS[0])
    assert on_disk(here) == [1]
    assert {Path(key).parts[4] for key in objects.list("")} == {DIGESTS[1]}


def test_a_deletion_without_the_object_store_fails_and_still_clears_the_disk(here: CachedStore, objects: FaultyObjects) -> None:
    publish(here)
    objects.down = True
    with pytest.raises(ObjectStoreUnavailable):
        here.delete_document(TENANT, DOCUMENT)
    assert on_disk(here) == []
    objects.down = False
    here.delete_document(TENANT, DOCUMENT)
    assert objects.list("") == []


def test_the_least_recently_read_leave_the_disk_first(tmp_path: Path, objects: FaultyObjects) -> None:
    store = replica(tmp_path, objects, budget=3 * SIZE)
    for number in range(3):
        publish(store, number)
        age(store, number, number)
    with store.held(store.path(TENANT, DOCUMENT, DIGESTS[0])):
        pass
    publish(store, 3)
    store.trim()
    assert on_disk(store) == [0, 3]  # a tenth of the budget is free again
    assert store.size() <= 3 * SIZE
    assert store.stats()["disk_evictions"] == 2
    assert fetch(store, 1).is_dir()


def test_within_the_budget_nothing_leaves(tmp_path: Path, objects: FaultyObjects) -> None:
    store = replica(tmp_path, objects, budget=3 * SIZE)
    for number in range(3):
        publish(store, number)
    store.trim()
    assert on_disk(store) == [0, 1, 2]


def test_fetching_makes_room(here: CachedStore, tmp_path: Path, objects: FaultyObjects) -> None:
    store = replica(tmp_path / "small", objects, budget=2 * SIZE)
    for number in range(6):
        publish(here, number)
        fetch(store, number)
        eventually(lambda: store.size() <= 2 * SIZE)
        age(store, number, number)
    assert on_disk(store) == [4, 5]


def test_what_is_being_read_stays(tmp_path: Path, objects: FaultyObjects) -> None:
    store = replica(tmp_path, objects, budget=SIZE // 2)
    publish(store, 0)
    publish(store, 1)
    with store.held(store.path(TENANT, DOCUMENT, DIGESTS[1])), replica(tmp_path, objects).held(store.path(TENANT, DOCUMENT, DIGESTS[1])):
        store.trim()
        assert on_disk(store) == [1]
    store.trim()
    assert on_disk(store) == []


def test_what_was_never_uploaded_stays_and_making_room_uploads_nothing(tmp_path: Path, there: CachedStore, objects: FaultyObjects) -> None:
    store = replica(tmp_path / "small", objects, budget=0)
    place = store.publish(staged(store), TENANT, DOCUMENT, DIGESTS[0])
    store.trim()
    assert on_disk(store) == [0]
    assert objects.asked == []
    age(store, 0, 7)
    assert store.upload(place, place) == {sha256()}
    assert place.stat().st_mtime == 7, "it was not read"
    store.trim()
    assert on_disk(store) == []
    assert fetch(there).is_dir()


def test_what_another_machine_deleted_does_not_come_back_when_it_leaves_the_disk(
    here: CachedStore, tmp_path: Path, objects: FaultyObjects
) -> None:
    publish(here)
    fetch(replica(tmp_path / "small", objects))
    store = replica(tmp_path / "small", objects, budget=0)
    publish(store, 1)
    here.delete_document(TENANT, DOCUMENT)
    assert on_disk(store) == [0, 1]
    objects.asked.clear()
    store.trim()
    assert on_disk(store) == []
    assert objects.asked == []
    assert objects.list("") == []


def test_what_another_object_store_has_is_not_in_this_one(tmp_path: Path, objects: FaultyObjects) -> None:
    publish(replica(tmp_path, FaultyObjects(), url="s3://before"))
    store = replica(tmp_path, objects, budget=0, url="s3://now")
    place = store.path(TENANT, DOCUMENT, DIGESTS[0])
    store.trim()
    assert on_disk(store) == [0]
    assert not store.is_marked(place)
    store.upload(place, place)
    assert {Path(key).name for key in objects.list("")} == {"adapter_model.safetensors", "manifest.json"}
    assert store.is_marked(place)


def test_what_is_withdrawn_is_not_taken_for_uploaded(here: CachedStore) -> None:
    place = publish(here)
    here.withdraw(place, sha256("[1]"))
    assert here.is_marked(place)
    here.withdraw(place, sha256())
    assert not here.is_marked(place)


def test_what_an_interrupted_fetch_left_goes_when_it_is_old(here: CachedStore) -> None:
    fresh, old = here.staging(TENANT, DOCUMENT), here.staging(TENANT, DOCUMENT)
    os.utime(old, (0, 0))
    here.trim()
    assert (fresh.exists(), old.exists()) == (True, False)


def test_an_extractor_goes_the_same_way(here: CachedStore, there: CachedStore, objects: FaultyObjects) -> None:
    folder = here.staging_extractor("system")
    (folder / "manifest.json").write_text("{}")
    here.upload(folder, here.extractor_path("system", DIGESTS[0]))
    here.publish_extractor(folder, "system", DIGESTS[0])
    place = there.extractor_path("system", DIGESTS[0])
    with there.kept(place, sha256()):
        pass
    assert (place / "manifest.json").read_text() == "{}"
    here.delete_extractor("system", DIGESTS[0], sha256())
    assert objects.list("") == []


def test_what_another_process_reads_is_brought_to_the_disk(here: CachedStore, there: CachedStore, objects: FaultyObjects) -> None:
    publish(here)
    directory = there.path(TENANT, DOCUMENT, DIGESTS[0])
    with there.kept(directory, sha256()):
        pass
    assert directory.is_dir()
    objects.down = True
    age(there, 0, 0)
    with there.kept(directory, sha256()):  # it is there: nobody is asked
        pass
    assert directory.stat().st_mtime > 0
    with pytest.raises(ObjectStoreUnavailable), there.kept(there.path(TENANT, DOCUMENT, DIGESTS[1]), sha256()):
        pass


def test_what_another_process_reads_stays_for_as_long_as_it_reads(here: CachedStore, tmp_path: Path, objects: FaultyObjects) -> None:
    """An extractor's training reads more modules than the cache has room for."""
    store = replica(tmp_path / "small", objects, budget=0)
    for number in range(3):
        publish(here, number)
    fetch(store, 0)
    eventually(lambda: on_disk(store) == [])
    with ExitStack() as held:
        for number in range(3):
            held.enter_context(store.kept(store.path(TENANT, DOCUMENT, DIGESTS[number]), sha256()))
        time.sleep(0.1)  # each place has begun to make room beside us
        assert on_disk(store) == [0, 1, 2]

    def emptied() -> bool:
        store.trim()  # does nothing while another one is under way
        return on_disk(store) == []

    eventually(emptied)


def test_what_is_nowhere_is_for_its_reader_to_miss(there: CachedStore) -> None:
    with there.kept(there.path(TENANT, DOCUMENT, DIGESTS[0]), sha256()):
        pass
    assert on_disk(there) == []


def test_a_place_taken_by_another_process_is_left_to_it(here: CachedStore, there: CachedStore, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(here)
    monkeypatch.setattr(there, "drop", lambda directory: (directory.mkdir(parents=True), (directory / "theirs").touch()))
    assert list(files(fetch(there))) == ["theirs"]


def test_fetches_are_counted(here: CachedStore, there: CachedStore) -> None:
    publish(here)
    directory = there.path(TENANT, DOCUMENT, DIGESTS[0])
    with there.fetched(directory, sha256()):
        assert there.stats()["disk_loading"] == 1
    stats = there.stats()
    assert (stats["disk_loads"], stats["disk_loading"], stats["disk_load_failures"], stats["store_misses"]) == (1, 0, 0, 0)
    assert stats["disk_load_seconds"] > 0
