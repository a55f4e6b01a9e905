"""Request bodies: how much of one is read, and what becomes of the rest of one that is refused.

Bodies that are read whole have a limit here; uploads have one of their own, as forms that are streamed and as JSON that is not. A response
that comes before its request's end closes the connection: the web server would otherwise read on, through a gigabyte if need be, to find
the next request behind it.
"""

from __future__ import annotations

from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY_BYTES: Final = 1024 * 1024
_UPLOADS: Final = (("POST", "/documents"), ("POST", "/extractors"))


class BodyLimit:
    """Refuses by HTTPException, which the web framework lets through while it reads a body, where it turns others into a 400."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        body = _Body(scope, receive, send)
        await self._app(scope, body.receive, body.send)


class _Body:
    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        length = headers.get("content-length", "0")
        self._receive = receive
        self._send = send
        self._announced = int(length) if length.isdecimal() else 0
        self._limited = (scope["method"], scope["path"]) not in _UPLOADS
        self._read = 0
        self._pending = self._announced > 0 or "transfer-encoding" in headers

    async def receive(self) -> Message:
        if self._limited and self._announced > MAX_BODY_BYTES:
            raise _too_large()
        message = await self._receive()
        self._pending = self._pending and message.get("more_body", False)
        self._read += len(message.get("body", b""))
        if self._limited and self._read > MAX_BODY_BYTES:
            raise _too_large()
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start" and self._pending:
            MutableHeaders(scope=message)["Connection"] = "close"
        await self._send(message)


def _too_large() -> HTTPException:
    return HTTPException(413, f"a request body has at most {MAX_BODY_BYTES} bytes")
