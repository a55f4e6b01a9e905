"""The care of a machine's cache: what others deleted goes, what the object store lacks is uploaded."""

from __future__ import annotations

import hashlib
import os
from functools import partial
from pathlib import Path

import pytest

from server.caching import forget_deleted, upload_missing
from server.db import documents
from server.db.session import SyncDatabase
from server.engine.request import Tier
from server.errors import IndexUnavailable, ObjectStoreUnavailable
from server.modules.cached_store import CachedStore
from tests.support.api import ACME, Api
from tests.support.object_stores import FaultyObjects, replica
from tests.support.rows import extractor

DIGEST = "a" * 64
SHA256 = hashlib.sha256(b"{}").hexdigest()


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


async def test_what_another_process_goes_on_deleting_is_dropped_at_once(api: Api, store: CachedStore) -> None:
    document = await api.uploaded("Staff get 31 days.")
    api.index_fake.error = IndexUnavailable("down")
    assert not (await api.client.delete(f"/documents/{document['id']}")).json()["complete"]
    directory = put(store.path(ACME, document["id"], DIGEST))
    api.engine.held = {directory: Tier.DEVICE}
    await forget_deleted(api.parts, store)
    assert store.documents() == set()
    assert [path for path, _ in api.engine.evicted] == [directory]


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


async def module_before(api: Api, store: CachedStore) -> Path:
    """A document's module, published before there was an object store."""
    document = await api.uploaded("Staff get 31 days.")
    await api.index(document["id"], ["Staff get 31 days."])
    return put(store.path(ACME, document["id"], await api.train(document["id"], manifest_sha256=SHA256)))


async def test_a_deleted_extractor_goes_from_every_tier_however_lately_it_was_read(api: Api, store: CachedStore) -> None:
    """Under its tombstone, or without a row; on the disk, in memory, or both. One that serves stays."""
    for letter, deleted_at in (("a", 1.0), ("b", None)):
        await api.sql(partial(extractor, owner=ACME, lora=letter * 64, active=False, deleted_at=deleted_at))
    tombstoned, serving = (put(store.extractor_path(ACME, f"c{letter * 63}")) for letter in "ab")
    in_memory = store.extractor_path("system", DIGEST)
    api.engine.held = {tombstoned: Tier.DEVICE, serving: Tier.DEVICE, in_memory: Tier.HOST, Path("elsewhere"): Tier.HOST}
    await forget_deleted(api.parts, store)
    assert store.artefacts() == [serving]
    assert [path for path, _ in api.engine.evicted] == [tombstoned, in_memory]


async def test_what_was_published_before_is_uploaded_once(api: Api, store: CachedStore, objects: FaultyObjects, tmp_path: Path) -> None:
    module = await module_before(api, store)
    await api.sql(lambda session: extractor(session, "system", "a" * 64, manifest_sha256=SHA256))
    made = put(store.extractor_path("system", f"c{'a' * 63}"))
    await upload_missing(api.parts, store)
    there = replica(tmp_path / "there", objects)
    assert there.below(ACME) == {there.path(ACME, module.parent.name, module.name)}
    assert len(objects.list(f"extractors/system/{made.name}")) == 1
    objects.asked.clear()
    await upload_missing(api.parts, store)
    assert objects.asked == []
    assert module.is_dir()


async def test_what_no_living_row_names_is_not_uploaded(api: Api, store: CachedStore, objects: FaultyObjects) -> None:
    """Of a document that is being deleted, of one that is gone, with another manifest, and of an extractor that is gone."""
    module = await module_before(api, store)
    await api.sql(lambda session: documents.tombstone(session, ACME, module.parent.name))
    other = await module_before(api, store)
    (other / "manifest.json").write_text("[]")
    put(store.path(ACME, "doc_gone", DIGEST))
    put(store.extractor_path("system", DIGEST))
    await upload_missing(api.parts, store)
    assert objects.asked == []


async def test_what_is_deleted_while_it_is_uploaded_does_not_stay(api: Api, store: CachedStore, objects: FaultyObjects) -> None:
    """By another machine, whose deletion looked for objects before they came."""
    module = await module_before(api, store)
    put_object, database = objects.put, SyncDatabase(api.parts.settings.sql_url)

    def deleting(key: str, file: Path) -> None:
        with database.write() as session:
            documents.tombstone(session, ACME, module.parent.name)
        put_object(key, file)

    objects.put = deleting  # type: ignore[method-assign]
    await upload_missing(api.parts, store)
    database.close()
    assert [asked.partition(" ")[0] for asked in objects.asked] == ["list", "put", "list", "delete"]
    assert objects.objects.list("") == []
    assert not store.is_marked(module)


async def test_an_upload_that_fails_is_told(api: Api, store: CachedStore, objects: FaultyObjects) -> None:
    await module_before(api, store)
    objects.down = True
    with pytest.raises(ObjectStoreUnavailable):
        await upload_missing(api.parts, store)
