"""`POST /ask` with `stream`: the order of events, errors before and after the first token, clients that go away."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from sqlalchemy import func, select

from server.db.tables import Audit
from server.errors import DeadlineExceeded, EngineStopped, ModuleCorrupt, TooManyRequests
from server.streams import EventStream, sse
from tests.support.api import Api
from tests.support.asgi import Exchange
from tests.support.asking import QUESTION, ready


def stream(api: Api, **body: Any) -> Exchange:
    content = json.dumps({"question": QUESTION, "stream": True, **body}).encode()
    return Exchange(api.app, "POST", "/ask", {**api.client.headers, "Content-Type": "application/json"}, [content]).start()


async def audits(api: Api) -> int:
    return int(await api.sql(lambda session: session.scalar(select(func.count()).select_from(Audit).where(Audit.action == "ask"))))


async def test_events_come_in_order_while_the_answer_is_written(api: Api) -> None:
    document, passages, digest = await ready(api)
    api.engine.gate = asyncio.Event()
    exchange = stream(api, document_id=document, mode="open_book")
    name, started = await exchange.event()
    assert (name, started["used"]["km"]["digest"], started["request_id"]) == ("answer.started", digest, exchange.headers["x-request-id"])
    assert exchange.headers["content-type"].startswith("text/event-stream")
    cited = [await exchange.event() for _ in passages]
    assert [(name, data["passage_id"]) for name, data in cited] == [("citation", passage) for passage in passages]
    assert await exchange.event() == ("answer.delta", {"text": "31"})
    api.engine.gate.set()
    assert await exchange.event() == ("answer.delta", {"text": " days"})
    name, whole = await exchange.event()
    assert (name, whole["answer"], whole["finish_reason"], len(whole["citations"])) == ("answer.completed", "31 days", "stop", 2)
    await exchange.ended()
    assert await audits(api) == 1


async def test_events_are_numbered(api: Api) -> None:
    response = await api.client.post("/ask", json={"question": QUESTION, "mode": "base", "stream": True})
    ids = [line for line in response.text.splitlines() if line.startswith("id: ")]
    assert ids == ["id: 1", "id: 2", "id: 3", "id: 4"]


async def test_no_transaction_is_open_while_tokens_are_streamed(api: Api) -> None:
    api.engine.gate = asyncio.Event()
    exchange = stream(api, mode="base")
    await exchange.event()
    pool: Any = api.parts.database.engine.pool
    assert pool.checkedout() == 0
    api.engine.gate.set()
    await exchange.ended()


async def test_errors_before_the_first_token_have_a_status(api: Api) -> None:
    document, _, digest = await ready(api)
    cases = [
        ({"document_id": "doc_absent"}, None, 404, "document_not_found"),
        ({"mode": "base"}, TooManyRequests("full"), 429, "engine_busy"),
        ({"document_id": document, "mode": "closed_book"}, ModuleCorrupt("bad", reason="bad", digest=digest), 503, "module_corrupt"),
    ]
    for body, error, status, code in cases:
        api.engine.error = error
        response = await api.client.post("/ask", json={"question": QUESTION, "stream": True, **body})
        assert (response.status_code, response.json()["code"]) == (status, code)
        assert response.headers["content-type"] == "application/problem+json"


async def test_errors_after_the_first_token_are_an_event(api: Api) -> None:
    for error, code in (
        (EngineStopped("stopping"), "engine_stopped"),
        (DeadlineExceeded("late"), "deadline_exceeded"),
        (RuntimeError("secret"), "internal_error"),
    ):
        api.engine.late_error = error
        exchange = stream(api, mode="base")
        assert [(await exchange.event())[0] for _ in range(2)] == ["answer.started", "answer.delta"]
        name, problem = await exchange.event()
        assert (name, problem["code"]) == ("error", code)
        assert "secret" not in str(problem)
        await exchange.ended()
    assert await audits(api) == 3


async def test_a_client_that_leaves_cancels_the_answer(api: Api) -> None:
    api.engine.gate = asyncio.Event()
    exchange = stream(api, mode="base")
    await exchange.event()
    await exchange.event()
    await exchange.leave()
    assert api.engine.cancelled == [api.engine.requests[0].request_id]
    assert api.engine.closed == 1
    assert await audits(api) == 1


async def test_a_client_that_leaves_before_the_first_token_cancels_the_answer(api: Api) -> None:
    never = asyncio.Event()
    api.engine.before = lambda: _wait(never)
    for streamed in (True, False):
        exchange = stream(api, mode="base", stream=streamed)
        while len(api.engine.requests) == len(api.engine.cancelled):
            await asyncio.sleep(0.01)
        await exchange.leave()
        assert exchange.status == 499
        assert api.engine.cancelled[-1] == api.engine.requests[-1].request_id
    assert await audits(api) == 0


async def test_a_client_that_leaves_a_json_answer_cancels_it(api: Api) -> None:
    api.engine.gate = asyncio.Event()
    exchange = stream(api, mode="base", stream=False)
    while not api.engine.requests:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    await exchange.leave()
    assert api.engine.closed == 1
    assert api.engine.cancelled == [api.engine.requests[0].request_id]


async def test_a_long_silence_has_heartbeats(api: Api) -> None:
    async def slow() -> Any:
        yield sse("one", "{}", 1)
        await asyncio.sleep(0.2)
        yield sse("two", "{}", 2)

    sent: list[bytes] = []

    async def send(message: Any) -> None:
        sent.append(message.get("body", b""))

    ended = asyncio.Event()

    async def end() -> None:
        ended.set()

    await EventStream(slow(), heartbeat=0.05, ended=end)({"type": "http", "asgi": {"spec_version": "2.4"}}, _never, send)
    assert b"".join(sent).startswith(b"event: one\ndata: {}\nid: 1\n\n: ping\n\n")
    assert ended.is_set()


async def _wait(event: asyncio.Event) -> None:
    await event.wait()


async def _never() -> Any:
    await asyncio.Event().wait()
