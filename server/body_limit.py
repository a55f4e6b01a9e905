"""A limit on request bodies that are read whole. Uploads are streamed and have a limit of their own."""

from __future__ import annotations

from typing import Final

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY_BYTES: Final = 1024 * 1024
_STREAMED: Final = ("POST", "/documents")


class BodyLimit:
    """Refuses by HTTPException, which the web framework lets through while it reads a body, where it turns others into a 400."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or (scope["method"], scope["path"]) == _STREAMED:
            return await self._app(scope, receive, send)
        announced = Headers(scope=scope).get("content-length", "")
        read = 0

        async def limited() -> Message:
            nonlocal read
            if announced.isdecimal() and int(announced) > MAX_BODY_BYTES:
                raise _too_large()
            message = await receive()
            read += len(message.get("body", b""))
            if read > MAX_BODY_BYTES:
                raise _too_large()
            return message

        await self._app(scope, limited, send)


def _too_large() -> HTTPException:
    return HTTPException(413, f"a request body has at most {MAX_BODY_BYTES} bytes")
