"""Two tenants: for every operation, what is another's is as good as absent."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.support.api import GLOBEX, OPEN_BOOK, Api, api, migrated_file, settings
from tests.support.asking import LEAVE, ready
from tests.support.extracting import indexed, lora_of, published, question, wearing

__all__ = ["api", "migrated_file", "settings"]


def told(response: Any) -> dict[str, Any]:
    """A refusal, without what differs between any two requests."""
    return {name: value for name, value in response.json().items() if name != "request_id"} | {"status": response.status_code}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/documents/{id}"),
        ("GET", "/documents/{id}?wait=1"),
        ("GET", "/documents/{id}/events"),
        ("POST", "/documents/{id}/cancel"),
        ("POST", "/documents/{id}/retry"),
        ("POST", "/documents/{id}/modules"),
        ("DELETE", "/documents/{id}"),
    ],
)
async def test_a_foreign_document_is_as_good_as_absent(api: Api, method: str, path: str) -> None:
    document = await api.uploaded()
    body: dict[str, Any] = {"json": {}} if path.endswith("/modules") else {}
    foreign = await api.stranger.request(method, path.format(id=document["id"]), **body)
    absent = await api.stranger.request(method, path.format(id="doc_absent"), **body)
    assert told(foreign) == told(absent)
    assert (foreign.status_code, foreign.json()["code"]) == (404, "document_not_found")
    untouched = (await api.client.get(f"/documents/{document['id']}")).json()
    assert (untouched["status"], untouched["row_version"]) == ("ingesting", 1)


async def test_a_foreign_job_is_as_good_as_absent(api: Api) -> None:
    document = await api.uploaded()
    foreign, absent = [await api.stranger.get(f"/jobs/{job}") for job in (document["job"]["id"], "job_absent")]
    assert told(foreign) == told(absent)
    assert foreign.json()["code"] == "job_not_found"


async def test_a_foreign_job_is_not_cancelled(api: Api) -> None:
    document = await api.uploaded()
    foreign, absent = [await api.stranger.post(f"/jobs/{job}/cancel") for job in (document["job"]["id"], "job_absent")]
    assert told(foreign) == told(absent)
    assert (await api.client.get(f"/jobs/{document['job']['id']}")).json()["state"] == "queued"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/extractors/{id}"),
        ("POST", "/extractors/{id}/activate"),
        ("POST", "/extractors/{id}/deactivate"),
        ("DELETE", "/extractors/{id}"),
    ],
)
async def test_a_foreign_extractor_is_as_good_as_absent(api: Api, method: str, path: str) -> None:
    mine = await published(api, "a", active=True)
    operator = await api.client_with("admin", tenant="default")
    for client in (api.stranger, operator):
        foreign, absent = [await client.request(method, path.format(id=each)) for each in (mine, "ext_absent")]
        assert told(foreign) == told(absent)
        assert (foreign.status_code, foreign.json()["code"]) == (404, "extractor_not_found")
        assert (await client.get("/extractors")).json() == {"items": [], "jobs": []}
    assert (await api.client.get(f"/extractors/{mine}")).json()["active"]


async def test_a_foreign_extractor_answers_no_question_and_makes_nothing_be_trained(api: Api) -> None:
    await published(api, "a", active=True)
    theirs = await wearing(api, lora_of("shared"), LEAVE, tenant=GLOBEX)
    other = await published(api, "b")
    assert (await api.client.post(f"/extractors/{other}/activate")).json()["retraining"] == 0
    answer = await api.stranger.post("/ask", json={"question": "How many days?", "document_id": theirs, "mode": "retrieval"})
    assert answer.json()["used"]["ke"] is None
    # Not even over a lora of the same bytes.
    refused = await api.stranger.post("/ask", json={"question": "How many days?", "document_id": theirs, "mode": "closed_book"})
    assert refused.json()["code"] == "extractor_unavailable"


async def test_nobody_learns_from_a_foreign_document(api: Api) -> None:
    mine = await indexed(api)
    foreign, absent = [
        await api.stranger.post("/extractors", json={"questions": [question(document)]}) for document in (mine, "doc_absent")
    ]
    assert told(foreign) == told(absent)
    assert foreign.json()["code"] == "invalid_questions"
    job = (await api.client.post("/extractors", json={"questions": [question(mine)]})).json()
    assert (await api.stranger.get("/extractors")).json() == {"items": [], "jobs": []}
    assert (await api.stranger.get(f"/jobs/{job['id']}")).json()["code"] == "job_not_found"


async def test_what_the_systems_extractor_was_trained_on_is_the_operators_to_see(api: Api) -> None:
    operator = await api.client_with("admin", tenant="default")
    document = await indexed(api, "The operator's.", tenant="default", client=operator)
    job = (await operator.post("/extractors", json={"questions": [question(document)], "owner": "system"})).json()
    made = await published(api, "shared", owner="system", job_id=job["id"])
    shown, theirs = [(await client.get(f"/extractors/{made}")).json() for client in (operator, api.client)]
    assert ([each["document_id"] for each in shown["documents"]], shown["job_id"]) == ([document], job["id"])
    assert (theirs["documents"], theirs["job_id"]) == ([], None)


async def test_a_foreign_document_is_not_listed(api: Api) -> None:
    await api.uploaded()
    assert (await api.stranger.get("/documents")).json() == {"items": [], "next": None}


async def test_another_tenants_cursor_leads_to_ones_own_documents(api: Api) -> None:
    for number in range(3):
        await api.uploaded(f"Mine {number}.")
        await api.uploaded(f"Theirs {number}.", client=api.stranger)
    cursor = (await api.client.get("/documents?limit=1")).json()["next"]
    mine = {item["id"] for item in (await api.client.get("/documents")).json()["items"]}
    theirs = (await api.stranger.get("/documents", params={"after": cursor})).json()["items"]
    assert not mine & {item["id"] for item in theirs}


async def test_a_foreign_document_answers_no_question(api: Api) -> None:
    document, _, _ = await ready(api, gate=OPEN_BOOK)
    for mode in ("auto", "closed_book", "open_book", "retrieval", "in_context"):
        for about in ({"document_id": document}, {"document_ids": [document]}):
            response = await api.stranger.post("/ask", json={"question": "How many days?", "mode": mode, **about})
            assert (response.status_code, response.json()["code"]) == (404, "document_not_found")
    everything = await api.stranger.post("/ask", json={"question": "How many days?"})
    assert everything.json()["code"] == "not_retrievable"
    assert api.engine.requests == []
    assert api.engine.prefetched == []


async def test_a_foreign_document_is_not_searched(api: Api) -> None:
    document, _, _ = await ready(api)
    assert (await api.stranger.post("/search", json={"query": LEAVE})).json() == {"hits": []}
    named = await api.stranger.post("/search", json={"query": LEAVE, "document_ids": [document]})
    assert named.json()["code"] == "document_not_found"


async def test_even_vectors_under_the_wrong_tenant_show_no_text(api: Api) -> None:
    """What the index says is confirmed by rows of the caller's tenant."""
    await ready(api)
    api.index_fake.entries = [replace(entry, tenant=GLOBEX) for entry in api.index_fake.entries]
    assert (await api.stranger.post("/search", json={"query": LEAVE})).json() == {"hits": []}


async def test_equal_bytes_of_two_tenants_share_nothing(api: Api) -> None:
    mine, theirs = await api.uploaded(LEAVE), await api.uploaded(LEAVE, client=api.stranger)
    assert mine["id"] != theirs["id"]
    await api.stranger.delete(f"/documents/{theirs['id']}")
    assert (await api.client.get(f"/documents/{mine['id']}")).status_code == 200
    blobs = api.parts.settings.root / "blobs"
    assert len([path for path in blobs.rglob("*") if path.is_file()]) == 1


async def test_the_tenant_comes_from_the_key_alone(api: Api) -> None:
    document = await api.uploaded()
    response = await api.stranger.get(f"/documents/{document['id']}", headers={"X-Tenant": "acme"}, params={"tenant": "acme"})
    assert response.status_code == 404
    refused = await api.stranger.post("/documents", json={"text": "x", "tenant": "acme"})
    assert refused.status_code == 422
