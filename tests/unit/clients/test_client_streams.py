from __future__ import annotations

from typing import Any

import httpx2
import pytest
from kmserve_client import errors
from kmserve_client.models import Answer, Citation, Delta, Started

from tests.support.client_caller import Caller
from tests.support.scripted_api import (
    USED,
    Cut,
    ScriptedApi,
    answer,
    citation,
    document,
    event_bytes,
    event_stream,
    problem,
    stream_response,
)

WHOLE = [
    ("answer.started", {"request_id": "req_1", "used": USED}),
    ("citation", citation()),
    ("answer.delta", {"text": "31 "}),
    ("answer.something_new", {}),
    ("answer.delta", {"text": "days"}),
    ("answer.completed", answer()),
]


def test_a_streamed_answer_comes_in_order(caller: Caller) -> None:
    api = ScriptedApi(event_stream(*WHOLE))
    events = caller.collect(api, "ask_stream", "How long?", mode="open_book")
    assert [type(event) for event in events] == [Started, Citation, Delta, Delta, Answer]
    assert "".join(event.text for event in events if isinstance(event, Delta)) == events[-1].answer == "31 days"
    assert api.bodies == [{"question": "How long?", "mode": "open_book", "stream": True}]


def test_an_error_within_the_stream_is_raised(caller: Caller) -> None:
    trouble = {"status": 503, "code": "engine_stopped", "detail": "stopping"}
    api = ScriptedApi(event_stream(WHOLE[0], ("error", trouble)))
    with pytest.raises(errors.Unavailable, match="stopping"):
        caller.collect(api, "ask_stream", "How long?")


def test_a_refusal_before_the_stream_is_raised_or_retried(caller: Caller) -> None:
    with pytest.raises(errors.Conflict):
        caller.collect(ScriptedApi(problem(409, "module_not_ready")), "ask_stream", "How long?")
    busy = problem(429, "engine_busy", headers={"retry-after": "0"})
    assert isinstance(caller.collect(ScriptedApi(busy, event_stream(*WHOLE)), "ask_stream", "How long?")[-1], Answer)


@pytest.mark.parametrize("error", [httpx2.ReadError("reset"), None])
def test_an_answer_cut_midway_is_never_taken_for_whole(caller: Caller, error: Exception | None) -> None:
    seen: list[Any] = []
    with pytest.raises(errors.ConnectionFailed):
        caller.collect_into(seen, ScriptedApi(event_stream(*WHOLE[:3], error=error)), "ask_stream", "How long?")
    assert isinstance(seen[-1], Delta)


def test_leaving_a_stream_lets_go_of_the_connection(caller: Caller) -> None:
    stream = Cut(event_bytes(*WHOLE), None)
    caller.collect(ScriptedApi(stream_response(stream)), "ask_stream", "How long?", limit=1)
    assert stream.closed


@pytest.mark.parametrize("data", ["[]", "nonsense"])
def test_events_that_are_no_objects_are_named_so(caller: Caller, data: str) -> None:
    stream = Cut(f"event: answer.delta\ndata: {data}\n\n".encode(), None)
    with pytest.raises(errors.UnexpectedResponse):
        caller.collect(ScriptedApi(stream_response(stream)), "ask_stream", "How long?")


def test_events_reconnect_where_they_were_cut(caller: Caller) -> None:
    running = {"id": "job_1", "kind": "train", "state": "running", "progress": {"done": 1, "total": 2}}
    api = ScriptedApi(
        event_stream(("document", document(status="ingesting")), error=httpx2.ReadError("reset")),
        httpx2.ConnectError("restarting"),
        event_stream(("document", document(status="training", job=running)), ("document", document(status="ready"))),
    )
    seen = caller.collect(api, "events", "doc_1")
    assert [each.status for each in seen] == ["ingesting", "training", "ready"]
    assert [request.headers.get("last-event-id") for request in api.requests] == [None, "1", "1"]


def test_events_give_up_when_nothing_comes_any_more(caller: Caller) -> None:
    api = ScriptedApi(*(event_stream() for _ in range(3)))
    with pytest.raises(errors.ConnectionFailed, match="closed"):
        caller.collect(api, "events", "doc_1")


def test_events_of_an_absent_document(caller: Caller) -> None:
    with pytest.raises(errors.NotFound):
        caller.collect(ScriptedApi(problem(404, "document_not_found")), "events", "doc_x")


def test_events_of_a_document_that_is_deleted_meanwhile(caller: Caller) -> None:
    api = ScriptedApi(event_stream(("document", document(status="training")), ("deleted", {"document_id": "doc_1"})))
    with pytest.raises(errors.NotFound, match="deleted"):
        caller.collect(api, "events", "doc_1")
