"""The event streams: a streamed answer, and a document's progress with reconnection. Knows no sockets."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Unpack

from httpx2 import ServerSentEvent

from kmserve_client.effects import Call, Emit, Flow, NextEvent, Pause, StreamFlow
from kmserve_client.errors import ConnectionFailed, NotFound, UnexpectedResponse, problem_error
from kmserve_client.models import Answer, AnswerEvent, Citation, Delta, Document, Started
from kmserve_client.operations import AskOptions, parse
from kmserve_client.retries import open_stream

ANSWER_EVENTS: Mapping[str, type[Started] | type[Citation] | type[Delta] | type[Answer]] = {
    "answer.started": Started,
    "citation": Citation,
    "answer.delta": Delta,
    "answer.completed": Answer,
}


def ask_stream(question: str, **options: Unpack[AskOptions]) -> StreamFlow[AnswerEvent]:
    """Like `ask`, as it is written. Closing the iterator cancels the answer; a connection lost midway raises ConnectionFailed."""
    body = {"question": question, **options, "stream": True}
    yield from open_stream(_event_stream("POST", "/ask", json=body))
    while (event := (yield from _next())) is not None:
        if event.event == "error":
            raise problem_error(_data(event), 500)
        model = ANSWER_EVENTS.get(event.event)
        if model is not None:
            value = parse(model, _data(event))
            yield Emit(value)
            if isinstance(value, Answer):
                return
    raise ConnectionFailed("the answer's stream ended before the answer did")


def events(document_id: str) -> StreamFlow[Document]:
    """The document at each change of its status or its job's progress, until it is settled. Reconnects where the stream was cut.
    Raises NotFound when it is deleted meanwhile."""
    attempt, last = 0, ""
    while True:
        headers = {"Last-Event-ID": last} if last else {}
        yield from open_stream(_event_stream("GET", f"/documents/{document_id}/events", headers=headers))
        try:
            while (event := (yield from _next())) is not None:
                attempt, last = 0, event.id or last
                if event.event == "deleted":
                    raise NotFound(404, "document_not_found", f"{document_id} was deleted", {})
                if event.event == "document":
                    document = parse(Document, _data(event))
                    yield Emit(document)
                    if document.settled:
                        return
        except ConnectionFailed as error:
            broken: Exception = error
        else:
            broken = ConnectionFailed("the server closed the stream of events")
        attempt += 1
        again: bool = yield Pause(attempt=attempt)
        if not again:
            raise broken


def _event_stream(method: str, path: str, **options: Any) -> Call:
    headers = {"Accept": "text/event-stream", **options.pop("headers", {})}
    return Call(method=method, path=path, headers=headers, repeatable=True, **options)


def _next() -> Flow[ServerSentEvent | None]:
    outcome: ServerSentEvent | ConnectionFailed | None = yield NextEvent()
    if isinstance(outcome, ConnectionFailed):
        raise outcome
    return outcome


def _data(event: ServerSentEvent) -> dict[str, Any]:
    try:
        data = json.loads(event.data)
    except ValueError as error:
        raise UnexpectedResponse(f"the event {event.event!r} is not JSON") from error
    if not isinstance(data, dict):
        raise UnexpectedResponse(f"the event {event.event!r} is not an object")
    return data
