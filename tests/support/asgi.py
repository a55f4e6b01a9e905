"""One request on an ASGI application by hand: for clients that go away, and for streams that are read while they are written."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from typing import Any

from fastapi import FastAPI
from starlette.types import Message


class Exchange:
    """`start` sends the request, `line` waits for the next line of the body, `leave` closes the connection as a client would."""

    def __init__(
        self, app: FastAPI, method: str, path: str, headers: dict[str, str], body: Iterable[bytes] = (b"",), *, cut: bool = False
    ) -> None:
        self._app = app
        raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        kind = {"type": "http", "http_version": "1.1", "asgi": {"version": "3.0", "spec_version": "2.3"}, "scheme": "http"}
        path, _, query = path.partition("?")
        self._scope = {**kind, "method": method, "path": path, "raw_path": path.encode(), "query_string": query.encode(), "headers": raw}
        self._scope |= {"server": ("test", 80), "client": ("test", 1), "root_path": "", "state": {}}
        pieces = list(body)
        self._received: list[Message] = [
            {"type": "http.request", "body": piece, "more_body": cut or number < len(pieces) - 1} for number, piece in enumerate(pieces)
        ]
        self._gone = asyncio.Event()
        if cut:
            self._gone.set()
        self._lines: asyncio.Queue[str] = asyncio.Queue()
        self._rest = b""
        self.status: int | None = None
        self.headers: dict[str, str] = {}
        self.task: asyncio.Task[None] | None = None

    def start(self) -> Exchange:
        self.task = asyncio.create_task(self._app(self._scope, self._receive, self._send))
        return self

    async def line(self) -> str:
        return await asyncio.wait_for(self._lines.get(), 5)

    async def event(self) -> tuple[str, Any]:
        """The next server-sent event's name and data; comments are passed over."""
        fields: dict[str, str] = {}
        while (line := await self.line()) or "data" not in fields:
            name, _, value = line.partition(": ")
            fields[name] = value
        return fields["event"], json.loads(fields["data"])

    async def leave(self) -> None:
        self._gone.set()
        await self.ended()

    async def ended(self) -> None:
        assert self.task is not None
        await asyncio.wait_for(self.task, 5)

    async def _receive(self) -> Message:
        if self._received:
            return self._received.pop(0)
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {name.decode(): value.decode() for name, value in message["headers"]}
            return
        *lines, self._rest = (self._rest + message.get("body", b"")).split(b"\n")
        for line in lines:
            self._lines.put_nowait(line.decode())
