"""Artefacts read from the disk and from the object store below it: proven like any, and placed only then."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from server.engine.request import ArtefactRef
from server.errors import ModuleCorrupt, ModuleMissing, ModuleUnreadable, ModuleWrongBase
from server.modules.artefact import Artefact
from server.modules.cached_store import CachedStore
from server.modules.fetching import below_reader, disk_reader
from tests.support.artefacts import ADAPTER, FINGERPRINT, MANIFEST, MAX_RANK, OTHER, SHAPES, write_extractor, write_module
from tests.support.object_stores import FaultyObjects, replica


@pytest.fixture
def objects() -> FaultyObjects:
    return FaultyObjects()


@pytest.fixture
def there(tmp_path: Path, objects: FaultyObjects) -> CachedStore:
    return replica(tmp_path / "there", objects)


@pytest.fixture
def ref(tmp_path: Path, objects: FaultyObjects, there: CachedStore) -> ArtefactRef:
    """Of a module that another machine has published, as this one looks for it."""
    here = replica(tmp_path / "here", objects)
    staged = here.staging("t1", "doc_1")
    made = write_module(staged)
    here.upload(staged, here.path("t1", "doc_1", made.digest))
    return replace(made, directory=there.path("t1", "doc_1", made.digest))


def fetched(store: CachedStore, ref: ArtefactRef, fingerprint: str = FINGERPRINT) -> Artefact:
    return below_reader(store)(ref, fingerprint, SHAPES, MAX_RANK)


def on_disk(store: CachedStore, ref: ArtefactRef) -> Artefact:
    return disk_reader(store)(ref, FINGERPRINT, SHAPES, MAX_RANK)


def changed(objects: FaultyObjects, folder: Path, name: str, data: bytes) -> None:
    (key,) = [key for key in objects.list("") if key.endswith(name)]
    (folder / "forged").write_bytes(data)
    objects.put(key, folder / "forged")


def test_what_another_machine_published_is_fetched_proven_and_kept(there: CachedStore, ref: ArtefactRef, objects: FaultyObjects) -> None:
    with pytest.raises(ModuleMissing):
        on_disk(there, ref)
    below = fetched(there, ref)
    objects.down = True
    kept = on_disk(there, ref)
    assert below.manifest == kept.manifest
    assert all((below.a[name] == kept.a[name]).all() for name in SHAPES)


def test_an_extractor_is_fetched_with_its_composition(tmp_path: Path, there: CachedStore, objects: FaultyObjects) -> None:
    here = replica(tmp_path / "here", objects)
    staged = here.staging_extractor("system")
    made = write_extractor(staged)
    assert made.composition is not None
    here.upload(staged, here.extractor_path("system", made.composition))
    sought = replace(made, directory=there.extractor_path("system", made.composition))
    assert fetched(there, sought).composition is not None
    assert on_disk(there, sought).composition is not None


@pytest.mark.parametrize("name", [ADAPTER, MANIFEST])
def test_wrong_bytes_are_refused_and_not_placed(
    tmp_path: Path, there: CachedStore, ref: ArtefactRef, objects: FaultyObjects, name: str
) -> None:
    changed(objects, tmp_path, name, b"{}")
    with pytest.raises(ModuleCorrupt) as caught:
        fetched(there, ref)
    assert caught.value.extra["digest"] == ref.digest
    assert not ref.directory.parent.exists()
    assert there.stats()["disk_load_failures"] == 1


def test_an_artefact_that_lacks_an_object_is_damaged(there: CachedStore, ref: ArtefactRef, objects: FaultyObjects) -> None:
    (adapter,) = [key for key in objects.list("") if key.endswith(ADAPTER)]
    objects.delete(adapter)
    with pytest.raises(ModuleCorrupt):
        fetched(there, ref)


def test_one_without_a_manifest_is_missing(there: CachedStore, ref: ArtefactRef, objects: FaultyObjects) -> None:
    (manifest,) = [key for key in objects.list("") if key.endswith(MANIFEST)]
    objects.delete(manifest)
    with pytest.raises(ModuleMissing) as caught:
        fetched(there, ref)
    assert caught.value.extra["digest"] == ref.digest


def test_one_of_another_base_model_is_not_placed(there: CachedStore, ref: ArtefactRef) -> None:
    with pytest.raises(ModuleWrongBase):
        fetched(there, ref, OTHER)
    assert not ref.directory.exists()


def test_without_the_object_store_a_module_cannot_be_read_for_now(there: CachedStore, ref: ArtefactRef, objects: FaultyObjects) -> None:
    objects.down = True
    with pytest.raises(ModuleUnreadable, match="try again") as caught:
        fetched(there, ref)
    assert caught.value.extra["digest"] == ref.digest
    objects.down = False
    assert fetched(there, ref)


def test_what_is_damaged_on_the_disk_is_replaced(there: CachedStore, ref: ArtefactRef) -> None:
    fetched(there, ref)
    (ref.directory / ADAPTER).write_bytes(b"rot")
    with pytest.raises(ModuleCorrupt):
        on_disk(there, ref)
    fetched(there, ref)
    assert on_disk(there, ref)


def test_equal_tensors_with_another_manifest_are_replaced_by_what_the_row_names(there: CachedStore, ref: ArtefactRef) -> None:
    write_module(ref.directory, seed=0, created="2027-01-01T00:00:00Z")
    with pytest.raises(ModuleCorrupt):
        on_disk(there, ref)
    fetched(there, ref)
    assert on_disk(there, ref)
