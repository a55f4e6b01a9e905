"""The care of a machine's cache: what others deleted goes, what the object store lacks is uploaded."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from server.caching import forget_deleted, upload_missing
from server.engine.request import Tier
from server.errors import IndexUnavailable, ObjectStoreUnavailable
from server.modules.cached_store import CachedStore
from tests.support.api import ACME, Api
from tests.support.object_stores import FaultyObjects, replica

DIGEST = "a" * 64


@pytest.fixture
def objects() -> FaultyObjects:
    return FaultyObjects()


@pytest.fixture
def store(tmp_path: Path, objects: FaultyObjects) -> CachedStore:
    return replica(tmp_path, objects)


def put(directory: Path, text: str = "{}") -> Path:
    directory.mkdir(parents=True)
    (directory / "manifest.json").write_text(text)
    return directory


async def test_what_another_process_deleted_is_dropped_from_every_tier(api: Api, store: CachedStore, objects: FaultyObjects) -> None:
    document = await api.uploaded("Staff get 31 days.")
    kept = put(store.path(ACME, document["id"], DIGEST))
    gone, quarantined = put(store.path(ACME, "doc_gone", DIGEST)), put(store.path(ACME, "doc_bad", DIGEST))
    store.quarantine(ACME, "doc_bad", DIGEST, "damaged")
    in_memory = store.path(ACME, "doc_in_memory", DIGEST)
    api.engine.held = {kept: Tier.DEVICE, in_memory: Tier.HOST, gone: Tier.HOST, Path("elsewhere"): Tier.HOST}
    await forget_deleted(api.parts, store)
    assert store.artefacts() == [kept]
    assert store.documents() == {(ACME, document["id"])}
    assert not quarantined.exists()
    assert {path for path, _ in api.engine.evicted} == {gone, in_memory}
    assert ACME in api.engine.forgotten


async def test_a_document_under_its_tombstone_is_the_deletions(api: Api, store: CachedStore) -> None:
    document = await api.uploaded("Staff get 31 days.")
    api.index_fake.error = IndexUnavailable("down")
    assert not (await api.client.delete(f"/documents/{document['id']}")).json()["complete"]
    put(store.path(ACME, document["id"], DIGEST))
    await forget_deleted(api.parts, store)
    assert store.documents() == {(ACME, document["id"])}


async def test_another_tenants_document_of_that_id_is_no_reason_to_keep_it(api: Api, store: CachedStore) -> None:
    document = await api.uploaded("Staff get 31 days.")
    put(store.path("globex", document["id"], DIGEST))
    await forget_deleted(api.parts, store)
    assert store.artefacts() == []


async def test_an_extractor_without_a_row_goes_when_it_cannot_be_one_being_published(api: Api, store: CachedStore) -> None:
    fresh, old = put(store.extractor_path("system", DIGEST)), put(store.extractor_path(ACME, DIGEST))
    os.utime(old, (0, 0))
    await forget_deleted(api.parts, store)
    assert store.artefacts() == [fresh]
    assert [path for path, _ in api.engine.evicted] == [old]


async def test_what_was_published_before_is_uploaded_once(store: CachedStore, objects: FaultyObjects, tmp_path: Path) -> None:
    module, extractor = put(store.path(ACME, "doc_1", DIGEST)), put(store.extractor_path("system", DIGEST))
    await upload_missing(store)
    there = replica(tmp_path / "there", objects)
    assert there.below(ACME) == {there.path(ACME, "doc_1", DIGEST)}
    assert len(objects.list(f"extractors/system/{extractor.name}")) == 1
    objects.asked.clear()
    await upload_missing(store)
    assert not [asked for asked in objects.asked if asked.startswith("put")]
    assert module.is_dir()


async def test_an_upload_that_fails_is_told(store: CachedStore, objects: FaultyObjects) -> None:
    put(store.path(ACME, "doc_1", DIGEST))
    objects.down = True
    with pytest.raises(ObjectStoreUnavailable):
        await upload_missing(store)
