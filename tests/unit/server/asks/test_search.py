"""`POST /search`."""

from __future__ import annotations

from typing import Any

import pytest

from server.errors import IndexUnavailable
from tests.support.api import Api
from tests.support.asking import LEAVE, TRAVEL


async def two_documents(api: Api) -> tuple[str, str]:
    leave, travel = [(await api.uploaded(text, filename=f"{text[:5]}.txt"))["id"] for text in (LEAVE, TRAVEL)]
    await api.index(leave, [LEAVE])
    await api.index(travel, [TRAVEL])
    return leave, travel


async def hits(api: Api, **body: Any) -> list[dict[str, Any]]:
    response = await api.client.post("/search", json=body)
    assert response.status_code == 200, response.text
    found: list[dict[str, Any]] = response.json()["hits"]
    return found


async def test_the_nearest_passages_come_first(api: Api) -> None:
    leave, travel = await two_documents(api)
    found = await hits(api, query="trains booked in Basel")
    assert [hit["document_id"] for hit in found] == [travel, leave]
    assert (found[0]["quote"], found[0]["filename"]) == (TRAVEL, "Train.txt")
    assert 1 >= found[0]["score"] > found[1]["score"]
    assert len(await hits(api, query="trains", top_k=1)) == 1


async def test_a_search_stays_within_the_named_documents(api: Api) -> None:
    leave, _ = await two_documents(api)
    assert [hit["document_id"] for hit in await hits(api, query="trains", document_ids=[leave, leave])] == [leave]
    response = await api.client.post("/search", json={"query": "trains", "document_ids": [leave, "doc_absent"]})
    assert (response.status_code, response.json()["code"]) == (404, "document_not_found")


async def test_vectors_whose_document_is_gone_are_not_found(api: Api) -> None:
    leave, travel = await two_documents(api)
    entries = list(api.index_fake.entries)
    await api.client.delete(f"/documents/{travel}")
    api.index_fake.entries = entries
    assert [hit["document_id"] for hit in await hits(api, query="trains")] == [leave]


async def test_an_index_out_of_reach_is_a_problem(api: Api) -> None:
    api.index_fake.error = IndexUnavailable("the vector index does not answer")
    response = await api.client.post("/search", json={"query": "trains"})
    assert (response.status_code, response.json()["code"]) == (503, "index_unavailable")


@pytest.mark.parametrize(
    "body", [{}, {"query": ""}, {"query": "x", "top_k": 0}, {"query": "x", "document_ids": []}, {"query": "x", "k": 3}]
)
async def test_a_search_that_makes_no_sense_is_refused(api: Api, body: dict[str, Any]) -> None:
    response = await api.client.post("/search", json=body)
    assert (response.status_code, response.json()["code"]) == (422, "invalid_input")
