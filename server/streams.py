"""What outlives an ordinary request: event streams with heartbeats, and work that stops when its caller goes away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from typing import Any, Final, TypeVar

import anyio
from fastapi import Request
from fastapi.responses import StreamingResponse
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from pydantic import BaseModel
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

T = TypeVar("T")
HEARTBEAT_SECONDS: Final = 15.0


def sse(name: str, data: BaseModel | str, number: int | str) -> bytes:
    """One server-sent event; `data` is a model, or JSON already."""
    return format_sse_event(data_str=data if isinstance(data, str) else data.model_dump_json(), event=name, id=str(number))


def described(events: Mapping[str, str]) -> dict[str, Any]:
    """OpenAPI's content of a stream of these events: name -> what its data, JSON in a string, holds."""
    name = {"type": "string", "enum": list(events), "description": "; ".join(f"`{event}`: {data}" for event, data in events.items())}
    data = {"type": "string", "contentMediaType": "application/json"}
    fields = {"event": name, "data": data, "id": {"type": "string"}}
    return {"text/event-stream": {"schema": {"type": "object", "required": list(fields), "properties": fields}}}


class EventStream(StreamingResponse):
    """Server-sent events with a heartbeat while there is none. When the stream ends, or the client goes away, perhaps before the first
    event, the generator is closed and `ended` is awaited.

    The web framework's own event streams end their request's errors before the status is known, and cannot follow a JSON answer's rules:
    theirs is the wire format."""

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        *,
        heartbeat: float = HEARTBEAT_SECONDS,
        ended: Callable[[], Awaitable[object]] | None = None,
    ) -> None:
        self._events = events
        self._ended = ended
        self._heartbeat = heartbeat
        self._next: asyncio.Task[bytes | None] | None = None
        super().__init__(self._beating(), headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            with anyio.CancelScope(shield=True):
                await self._close()

    async def _beating(self) -> AsyncIterator[bytes]:
        while True:
            self._next = self._next or asyncio.ensure_future(_or_none(self._events))
            await asyncio.wait((self._next,), timeout=self._heartbeat)
            if not self._next.done():
                yield KEEPALIVE_COMMENT
                continue
            event, self._next = self._next.result(), None
            if event is None:
                return
            yield event

    async def _close(self) -> None:
        if self._next is not None:
            self._next.cancel()
            await asyncio.gather(self._next, return_exceptions=True)
        await self._events.aclose()
        if self._ended is not None:
            await self._ended()


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The work's result; the work is cancelled and ClientDisconnect raised if the client goes away first."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        for started in (task, gone):
            started.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    """The body has been read, so that what comes is the end of the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _or_none(events: AsyncGenerator[bytes, None]) -> bytes | None:
    return await anext(events, None)
