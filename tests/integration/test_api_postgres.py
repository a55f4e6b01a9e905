"""The API over PostgreSQL: the same routes, with another database's locks and types."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from sqlalchemy import func, select

from server.background import housework
from server.db.migrate import upgrade
from server.db.tables import Document, IdempotencyKey, Job, JobKind, Revision
from server.settings import Settings
from tests.support.api import OPEN_BOOK, Api, running_api, seed
from tests.support.asking import LEAVE, ask, ready, refused
from tests.support.databases import empty_postgres
from tests.support.servers import postgres_server


@pytest.fixture(scope="module")
def postgres_url() -> Iterator[str]:
    with postgres_server() as url:
        yield url


@pytest.fixture
async def api(tmp_path: Path, postgres_url: str) -> AsyncIterator[Api]:
    empty_postgres(postgres_url)
    upgrade(postgres_url)
    seed(postgres_url)
    async with running_api(Settings(data_dir=tmp_path, database_url=postgres_url)) as running:
        yield running


async def test_two_uploads_of_the_same_bytes_at_once_make_one_document(api: Api) -> None:
    responses = await asyncio.gather(*(api.client.post("/documents", json={"text": LEAVE, "title": f"{number}"}) for number in range(8)))
    assert sorted(response.status_code for response in responses) == [200] * 7 + [202]
    assert len({response.json()["id"] for response in responses}) == 1
    counts = await api.sql(lambda session: [session.scalar(select(func.count()).select_from(table)) for table in (Document, Revision, Job)])
    assert counts == [1, 1, 1]
    assert len([path for path in (api.parts.settings.root / "blobs").rglob("*") if path.is_file()]) == 1


async def test_two_requests_with_one_idempotency_key_at_once_make_one_document(api: Api) -> None:
    headers = {"Idempotency-Key": "k"}
    responses = await asyncio.gather(*(api.client.post("/documents", json={"text": LEAVE}, headers=headers) for _ in range(4)))
    assert {response.status_code for response in responses} <= {202, 409}
    assert 202 in {response.status_code for response in responses}
    again = await api.client.post("/documents", json={"text": LEAVE}, headers=headers)
    assert again.status_code == 202
    other = await api.client.post("/documents", json={"text": "Other."}, headers=headers)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")


async def test_documents_are_listed_asked_and_deleted(api: Api) -> None:
    document, passages, digest = await ready(api, gate=OPEN_BOOK)
    others = [await api.uploaded(f"Text {number}.", metadata={"number": number}) for number in range(3)]
    first = (await api.client.get("/documents?limit=3")).json()
    second = (await api.client.get("/documents", params={"limit": 3, "after": first["next"]})).json()
    assert [item["id"] for item in first["items"] + second["items"]] == [*(other["id"] for other in reversed(others)), document]
    answer = await ask(api, document_id=document)
    assert (answer["used"]["km"]["digest"], set(answer["used"]["passages"])) == (digest, set(passages))
    receipt = (await api.client.delete(f"/documents/{document}")).json()
    assert (receipt["complete"], receipt["removed"]["passages"]) == (True, 2)
    assert (await refused(api, document_id=document))[:2] == (404, "document_not_found")
    keys = await api.sql(lambda session: session.scalar(select(func.count()).select_from(IdempotencyKey)))
    assert keys == 0


async def test_a_failed_ingest_is_retried_and_a_lost_one_is_taken_back(api: Api) -> None:
    document = await api.uploaded()
    await api.fail(JobKind.INGEST, "broken_document")
    retried = (await api.client.post(f"/documents/{document['id']}/retry")).json()
    assert (retried["status"], retried["job"]["state"]) == ("ingesting", "queued")
    await housework(api.parts)
    cancelled = (await api.client.post(f"/documents/{document['id']}/cancel")).json()
    assert cancelled["status"] == "cancelled"


async def test_text_that_postgresql_cannot_store_is_refused_before_it_gets_there(api: Api) -> None:
    for body in ({"text": "x", "title": "a\x00b"}, {"text": "x", "metadata": {"a": "\x00"}}, {"text": "x", "external_id": "\x00"}):
        response = await api.client.post("/documents", json=body)
        assert (response.status_code, response.json()["code"]) == (422, "invalid_input")
    for path in ("/documents/doc%00", "/jobs/job%00", "/documents?after=WzEuMCwiXHUwMDAwIl0"):
        assert (await api.client.get(path)).status_code == 422
    assert (await refused(api, document_id="doc\x00"))[0] == 422
