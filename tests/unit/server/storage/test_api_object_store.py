"""The API over an object store that works, and over one that does not."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest

from server.background import housework
from server.health.service import Doctor
from tests.support.api import ACME, Api, client_of
from tests.support.object_stores import FaultyObjects, replica
from tests.support.rows import extractor


@pytest.fixture
def objects(api: Api, tmp_path: Path) -> FaultyObjects:
    """What the API's modules lie in, from now on."""
    objects = FaultyObjects()
    object.__setattr__(api.parts, "modules", replica(tmp_path, objects))
    object.__setattr__(api.parts, "settings", api.parts.settings.model_copy(update={"object_store": "s3://bucket"}))
    return objects


async def published(api: Api, text: str = "Staff get 31 days.", *, on_disk: bool = True) -> tuple[str, Path]:
    """The document and the directory of a module that is in the object store. Its manifest is the bytes `{}`."""
    document = await api.uploaded(text)
    await api.index(document["id"], [text])
    sha256 = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    digest = await api.train(document["id"], manifest_sha256=sha256)
    directory = api.parts.modules.path(ACME, document["id"], digest)
    directory.mkdir(parents=True)
    (directory / "manifest.json").write_text("{}")
    api.parts.modules.upload(directory, directory)
    if not on_disk:
        shutil.rmtree(directory)
    return document["id"], directory


async def tier(api: Api) -> str | None:
    response = await (await api.client_with("admin")).get("/modules/residency")
    assert response.status_code == 200, response.text
    shown: str | None = response.json()["items"][0]["tier"]
    return shown


async def test_deleting_a_document_deletes_its_objects(api: Api, objects: FaultyObjects) -> None:
    document, directory = await published(api)
    assert objects.list("")
    receipt = (await api.client.delete(f"/documents/{document}")).json()
    assert receipt["complete"]
    assert (objects.list(""), directory.exists()) == ([], False)


async def test_a_deletion_waits_for_the_object_store_and_nothing_else_waits_for_it(api: Api, objects: FaultyObjects) -> None:
    document, directory = await published(api)
    objects.down = True
    receipt = (await api.client.delete(f"/documents/{document}")).json()
    assert not receipt["complete"]
    assert not directory.exists()
    assert not list((api.parts.settings.root / "blobs").rglob(f"{document}/*"))
    assert [path for path, _ in api.engine.evicted] == [directory]
    assert (await api.client.get(f"/documents/{document}")).status_code == 404
    await housework(api.parts)
    objects.down = False
    assert objects.list("")
    await housework(api.parts)
    assert objects.list("") == []
    objects.asked.clear()
    await housework(api.parts)
    assert objects.asked == []


async def extractor_published(api: Api, lora: str) -> tuple[str, Path]:
    """Its id and its directory."""
    sha256 = hashlib.sha256(b"{}").hexdigest()
    made = await api.sql(lambda session: extractor(session, ACME, lora, active=False, manifest_sha256=sha256))
    directory = api.parts.modules.extractor_path(ACME, f"c{lora[1:]}")
    directory.mkdir(parents=True)
    (directory / "manifest.json").write_text("{}")
    api.parts.modules.upload(directory, directory)
    return str(made), directory


async def test_a_deleted_extractor_leaves_disk_and_memory_without_the_object_store(api: Api, objects: FaultyObjects) -> None:
    made, directory = await extractor_published(api, "a" * 64)
    objects.down = True
    assert (await api.client.delete(f"/extractors/{made}")).status_code == 204
    assert not directory.exists()
    assert [path for path, _ in api.engine.evicted] == [directory]
    objects.down = False
    assert objects.list("")
    await housework(api.parts)
    assert objects.list("") == []


async def test_an_object_store_that_is_away_is_waited_for_once_a_round(api: Api, objects: FaultyObjects) -> None:
    """However many deletions wait for it; all are finished when it is back."""
    dead = [await published(api), await published(api, "Staff get 32 days.")]
    made = [await extractor_published(api, letter * 64) for letter in "ab"]
    objects.down = True
    for document, _ in dead:
        await api.client.delete(f"/documents/{document}")
    for name, _ in made:
        await api.client.delete(f"/extractors/{name}")
    objects.asked.clear()
    await housework(api.parts)
    assert len(objects.asked) == 1
    objects.down = False
    await housework(api.parts)
    assert objects.list("") == []


async def test_a_module_that_only_the_object_store_has_is_there(api: Api, objects: FaultyObjects) -> None:
    document, _ = await published(api, on_disk=False)
    assert await tier(api) == "store"
    refused = await api.client.post(f"/documents/{document}/retry")
    assert (refused.status_code, refused.json()["code"]) == (409, "not_retryable")


async def test_a_module_that_nothing_has_is_trained_again(api: Api, objects: FaultyObjects) -> None:
    document, _ = await published(api, on_disk=False)
    for key in objects.list(""):
        objects.delete(key)
    assert await tier(api) is None
    retried = await api.client.post(f"/documents/{document}/retry")
    assert (retried.status_code, retried.json()["job"]["kind"]) == (200, "train")


async def test_without_the_object_store_nobody_says_that_a_module_is_gone(api: Api, objects: FaultyObjects) -> None:
    document, _ = await published(api, on_disk=False)
    objects.down = True
    answers = [await api.client.post(f"/documents/{document}/retry"), await (await api.client_with("admin")).get("/modules/residency")]
    assert [(answer.status_code, answer.json()["code"]) for answer in answers] == [(503, "object_store_unavailable")] * 2


async def test_readiness_says_when_the_object_store_is_out_of_reach_and_does_not_need_it(api: Api, objects: FaultyObjects) -> None:
    part = (await _health(api))["parts"]["object_store"]
    assert (part["ok"], part["required"]) == (True, False)
    objects.down = True
    health = await _health(api)
    assert health["status"] == "ready"
    assert (health["parts"]["object_store"]["ok"], health["parts"]["object_store"]["code"]) == (False, "object_store_unavailable")


async def _health(api: Api) -> dict[str, Any]:
    api.app.state.doctor = Doctor()
    response = await client_of(api.app, None).get("/health/ready")
    assert response.status_code == 200
    body: dict[str, Any] = response.json()
    return body
