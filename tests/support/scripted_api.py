"""A server made of a list of answers, for the client's tests: each request takes the next one, and all requests are kept."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx2

Answer = httpx2.Response | Exception | Callable[[httpx2.Request], httpx2.Response]


class ScriptedApi:
    """`transport` serves blocking and async clients alike. An exception in the script is raised instead of an answer."""

    def __init__(self, *script: Answer) -> None:
        self._script = list(script)
        self.requests: list[httpx2.Request] = []

    @property
    def transport(self) -> httpx2.MockTransport:
        return httpx2.MockTransport(self._handle)

    @property
    def bodies(self) -> list[Any]:
        return [json.loads(request.content) for request in self.requests]

    def _handle(self, request: httpx2.Request) -> httpx2.Response:
        self.requests.append(request)
        answer = self._script.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, httpx2.Response) else answer(request)


def problem(status: int, code: str, detail: str = "because", headers: dict[str, str] | None = None, **extra: Any) -> httpx2.Response:
    body = {"type": "about:blank", "title": code, "status": status, "code": code, "detail": detail, **extra}
    return httpx2.Response(status, json=body, headers={**(headers or {}), "content-type": "application/problem+json"})


def document(document_id: str = "doc_1", status: str = "ready", row_version: int = 1, **fields: Any) -> dict[str, Any]:
    return {"id": document_id, "title": "Policy", "status": status, "row_version": row_version, "added_later": True, **fields}


USED: dict[str, Any] = {"mode": "closed_book", "base": "smollm2", "km": {"document_id": "doc_1", "version": 1, "digest": "ab"}}


def citation(quote: str = "31 days of leave", **fields: Any) -> dict[str, Any]:
    place = {"passage_id": "p1", "document_id": "doc_1", "revision": "rev_1", "filename": "policy.md", "page": None}
    return {**place, "char_start": 0, "char_end": len(quote), "quote": quote, "score": 0.7, **fields}


def answer(text: str = "31 days", **fields: Any) -> dict[str, Any]:
    usage = {"prompt_tokens": 9, "completion_tokens": 3}
    return {"answer": text, "citations": [], "used": USED, "usage": usage, "request_id": "req_1", **fields}


class Cut(httpx2.SyncByteStream, httpx2.AsyncByteStream):
    """A body whose connection breaks after `data`; `closed` tells whether the client let go of it."""

    def __init__(self, data: bytes, error: Exception | None) -> None:
        self.data = data
        self.error = error
        self.closed = False

    def __iter__(self) -> Iterator[bytes]:
        yield self.data
        if self.error:
            raise self.error

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self:
            yield chunk

    def close(self) -> None:
        self.closed = True

    async def aclose(self) -> None:
        self.closed = True


def event_bytes(*events: tuple[str, Any]) -> bytes:
    """Server-sent events with ids 1, 2, …, a heartbeat after each."""
    parts = [f"id: {number}\nevent: {name}\ndata: {json.dumps(data)}\n\n: heartbeat\n\n" for number, (name, data) in enumerate(events, 1)]
    return "".join(parts).encode()


def stream_response(stream: Cut) -> httpx2.Response:
    return httpx2.Response(200, headers={"content-type": "text/event-stream"}, stream=stream)


def event_stream(*events: tuple[str, Any], error: Exception | None = None) -> httpx2.Response:
    return stream_response(Cut(event_bytes(*events), error))
