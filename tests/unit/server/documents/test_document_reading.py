"""`GET /documents`, `GET /documents/{id}` with its ETag and long poll, and the stream of events."""

from __future__ import annotations

import asyncio
import time

import pytest

from server.db.tables import JobKind
from tests.support.api import Api
from tests.support.asgi import Exchange


async def test_a_document_is_shown_with_revision_module_and_job(api: Api) -> None:
    uploaded = await api.uploaded("Staff get 31 days.")
    await api.index(uploaded["id"], ["Staff get 31 days."])
    digest = await api.train(uploaded["id"], gate={"auto_mode": "open_book"})
    document = (await api.client.get(f"/documents/{uploaded['id']}")).json()
    assert document["status"] == "ready"
    assert (document["revision"]["media_type"], document["revision"]["pages"], document["revision"]["number"]) == ("text/plain", 1, 1)
    assert document["revision"]["indexed_at"] > 0
    assert (document["module"]["version"], document["module"]["digest"], document["module"]["state"]) == (1, digest, "published")
    assert (document["job"]["kind"], document["job"]["state"], document["job"]["attempt"]) == ("train", "succeeded", 1)


async def test_the_etag_is_the_row_version(api: Api) -> None:
    document = await api.uploaded()
    path = f"/documents/{document['id']}"
    first = await api.client.get(path)
    assert first.headers["etag"] == f'"{first.json()["row_version"]}"'
    same = await api.client.get(path, headers={"If-None-Match": first.headers["etag"]})
    assert (same.status_code, same.content) == (304, b"")
    await api.index(document["id"], ["Staff get 31 days."])
    other = await api.client.get(path, headers={"If-None-Match": first.headers["etag"]})
    assert other.status_code == 200
    assert other.headers["etag"] != first.headers["etag"]


async def test_a_long_poll_ends_at_the_next_change(api: Api) -> None:
    document = await api.uploaded(train="never")
    path = f"/documents/{document['id']}?wait=20"
    poll = asyncio.create_task(api.client.get(path, headers={"If-None-Match": f'"{document["row_version"]}"'}))
    await asyncio.sleep(0.1)
    assert not poll.done()
    await api.index(document["id"], ["Staff get 31 days."])
    response = await asyncio.wait_for(poll, 2)
    assert (response.status_code, response.json()["status"]) == (200, "retrieval_ready")


async def test_a_long_poll_without_change_ends_with_304(api: Api) -> None:
    document = await api.uploaded()
    started = time.monotonic()
    response = await api.client.get(f"/documents/{document['id']}?wait=1", headers={"If-None-Match": f'"{document["row_version"]}"'})
    assert response.status_code == 304
    assert time.monotonic() - started >= 0.9


async def test_a_long_poll_on_a_settled_document_that_is_not_known_ends_at_once(api: Api) -> None:
    document = await api.uploaded(train="never")
    await api.index(document["id"], ["Staff get 31 days."])
    response = await asyncio.wait_for(api.client.get(f"/documents/{document['id']}?wait=20"), 1)
    assert response.json()["status"] == "retrieval_ready"


async def test_a_long_poll_on_a_document_that_is_deleted_ends_with_404(api: Api) -> None:
    document = await api.uploaded()
    poll = asyncio.create_task(api.client.get(f"/documents/{document['id']}?wait=20"))
    await asyncio.sleep(0.1)
    await api.client.delete(f"/documents/{document['id']}")
    assert (await asyncio.wait_for(poll, 2)).json()["code"] == "document_not_found"


@pytest.mark.parametrize("wait", ["-1", "61", "soon"])
async def test_a_long_poll_has_limits(api: Api, wait: str) -> None:
    document = await api.uploaded()
    assert (await api.client.get(f"/documents/{document['id']}?wait={wait}")).status_code == 422


async def test_documents_are_listed_page_after_page(api: Api) -> None:
    ids = [(await api.uploaded(f"Text {number}.", title=f"{number}"))["id"] for number in range(5)]
    seen, after = [], None
    for expected in (2, 2, 1):
        page = (await api.client.get("/documents", params={"limit": 2, **({"after": after} if after else {})})).json()
        assert len(page["items"]) == expected
        seen += [item["id"] for item in page["items"]]
        after = page["next"]
    assert after is None
    assert seen == ids[::-1]


async def test_documents_are_listed_oldest_first_and_by_status(api: Api) -> None:
    first, second = await api.uploaded("One.", train="never"), await api.uploaded("Two.")
    listed = (await api.client.get("/documents?order=asc")).json()["items"]
    assert [item["id"] for item in listed] == [first["id"], second["id"]]
    await api.index(first["id"], ["One."])
    ready = (await api.client.get("/documents?status=retrieval_ready")).json()["items"]
    assert [item["id"] for item in ready] == [first["id"]]


async def test_a_listing_whose_documents_go_stays_in_order(api: Api) -> None:
    ids = [(await api.uploaded(f"Text {number}."))["id"] for number in range(4)]
    page = (await api.client.get("/documents?limit=2")).json()
    await api.client.delete(f"/documents/{page['items'][-1]['id']}")
    following = (await api.client.get("/documents", params={"limit": 2, "after": page["next"]})).json()
    assert [item["id"] for item in following["items"]] == [ids[1], ids[0]]


@pytest.mark.parametrize("query", ["after=nonsense", "after=WzEsMiwzXQ", "after=e30", "limit=0", "limit=101", "order=up", "status=gone"])
async def test_a_listing_that_makes_no_sense_is_refused(api: Api, query: str) -> None:
    response = await api.client.get(f"/documents?{query}")
    assert (response.status_code, response.json()["code"]) == (422, "invalid_input")


async def test_events_show_every_change_until_the_document_has_settled(api: Api) -> None:
    document = await api.uploaded("Staff get 31 days.")
    stream = Exchange(api.app, "GET", f"/documents/{document['id']}/events", dict(api.client.headers)).start()
    name, first = await stream.event()
    assert (name, first["status"], stream.status, stream.headers["content-type"]) == (
        "document",
        "ingesting",
        200,
        "text/event-stream; charset=utf-8",
    )
    await api.index(document["id"], ["Staff get 31 days."])
    seen = [await stream.event()]
    while seen[-1][1]["status"] != "training":
        seen.append(await stream.event())
    await api.train(document["id"])
    while seen[-1][1]["status"] != "ready":
        seen.append(await stream.event())
    await stream.ended()


async def test_events_go_on_after_the_last_one_seen(api: Api) -> None:
    document = await api.uploaded(train="never")
    await api.index(document["id"], ["Staff get 31 days."])
    path = f"/documents/{document['id']}/events"
    body = (await api.client.get(path)).text
    last = next(line.removeprefix("id: ") for line in body.splitlines() if line.startswith("id: "))
    assert (await api.client.get(path, headers={"Last-Event-ID": last})).text == ""
    assert (await api.client.get(path, headers={"Last-Event-ID": "older"})).text == body


async def test_events_end_when_the_document_is_deleted(api: Api) -> None:
    document = await api.uploaded()
    stream = Exchange(api.app, "GET", f"/documents/{document['id']}/events", dict(api.client.headers)).start()
    await stream.event()
    await api.client.delete(f"/documents/{document['id']}")
    assert await stream.event() == ("deleted", {"document_id": document["id"]})
    await stream.ended()


async def test_events_of_a_client_that_left_end(api: Api) -> None:
    document = await api.uploaded()
    stream = Exchange(api.app, "GET", f"/documents/{document['id']}/events", dict(api.client.headers)).start()
    await stream.event()
    await stream.leave()


async def test_a_failed_job_shows_its_error(api: Api) -> None:
    document = await api.uploaded()
    await api.fail(JobKind.INGEST, "no_text_layer")
    shown = (await api.client.get(f"/documents/{document['id']}")).json()
    assert (shown["status"], shown["error"]) == ("failed", {"code": "no_text_layer", "message": "because"})
    job = (await api.client.get(f"/jobs/{shown['job']['id']}")).json()
    assert (job["state"], job["error"]["code"]) == ("failed", "no_text_layer")
