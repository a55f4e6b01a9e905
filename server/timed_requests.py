"""A middleware that tells of each HTTP request when it has ended, streams included: its status and how long it took."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class TimedRequests(ABC):
    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    @abstractmethod
    def tell(self, scope: Scope, status: int, seconds: float) -> None:
        """Called at its end. A `status` of 0: none was sent."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        started, status = time.perf_counter(), 0

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            self.tell(scope, status, time.perf_counter() - started)
