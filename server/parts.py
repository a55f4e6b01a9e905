"""The parts that requests are answered with, wired once by `app.py` and handed to every route.

Models are there later than the rest: the server answers while the base model is still being prepared.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Generic, Protocol, TypeVar

from fastapi import Depends, Request

from server.api_keys.keys import KeyMaker
from server.asks.prompting import Prompter
from server.db.blobs import BlobStore
from server.db.session import Database
from server.engine.request import Engine
from server.errors import KmserveError, Starting
from server.modules.store import ModuleStore
from server.retrieval.types import Embedding, Hit
from server.settings import Settings

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Index(Protocol):
    """What requests ask of the vector index."""

    async def search(
        self,
        tenant: str,
        vector: Sequence[float],
        k: int,
        document_ids: Sequence[str] | None = None,
        revision_ids: Sequence[str] | None = None,
    ) -> list[Hit]: ...

    async def count(self, tenant: str, document: str) -> int: ...

    async def delete_document(self, tenant: str, document: str) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Models:
    """What needs the base model or the embedding model in memory. `base_name` and `base_fingerprint` say which base that is.

    `notify_ingest` wakes the ingest loop: a hint, to be given after the transaction.
    """

    engine: Engine
    prompter: Prompter
    base_name: str
    base_fingerprint: str
    embedding: Embedding
    index: Index
    notify_ingest: Callable[[], object]


class Loading(Generic[T]):
    """A value that is there later. `stage` tells people how far it is, a failure that is tried again why it takes so long."""

    def __init__(self, value: T | None = None) -> None:
        self._value = value
        self._error: KmserveError | None = None
        self._failure: dict[str, str] | None = None
        self._attempts = 0
        self._retry_at = 0.0
        self.stage: dict[str, Any] = {"stage": "waiting"}

    def progress(self, stage: str, done: int, total: int) -> None:
        self.stage = {"stage": stage, "done": done, "total": total}

    def ready(self, value: T) -> None:
        self._value, self._failure = value, None

    def failed(self, code: str, detail: str, *, retry_in: float) -> None:
        """An attempt failed; in `retry_in` seconds there is another."""
        self._failure = {"code": code, "detail": detail}
        self._attempts += 1
        self._retry_at = time.monotonic() + retry_in

    def fail(self, error: KmserveError) -> None:
        """It will never be there."""
        self._error = error

    def peek(self) -> T | None:
        return self._value

    def get(self) -> T:
        """Raises Starting while it is not there, and what went wrong once it never will be."""
        if self._error is not None:
            raise self._error
        if self._value is None:
            raise self._starting()
        return self._value

    def _starting(self) -> Starting:
        if self._failure is None:
            return Starting("the base model is still being loaded; try again in a moment", **self.stage)
        seconds = max(0, math.ceil(self._retry_at - time.monotonic()))
        when = f"it is tried again in {seconds} s" if seconds else "it is being tried again"
        failure = {**self._failure, "attempts": self._attempts, "retry_in_seconds": seconds}
        return Starting(f"the server cannot answer yet: {self._failure['detail']}; {when}", failure=failure, **self.stage)


class Tasks:
    """Coroutines that outlive the request that started them, and end with the process."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Any]] = set()

    def start(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._ended)
        return task

    async def finish(self) -> None:
        """Wait for all that run."""
        while self._running:
            await asyncio.gather(*self._running, return_exceptions=True)

    async def cancel(self) -> None:
        for task in self._running:
            task.cancel()
        await self.finish()

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a background task failed", exc_info=error)


@dataclass(frozen=True, kw_only=True)
class Parts:
    """`ring` wakes a training worker, by way of a broker that may be slow: a hint, to be given on a thread after the transaction."""

    settings: Settings
    database: Database
    blobs: BlobStore
    modules: ModuleStore
    keys: KeyMaker
    models: Loading[Models]
    ring: Callable[[], object]
    tasks: Tasks = field(default_factory=Tasks)

    def notify_ingest(self) -> None:
        """The loop starts with the models, and then looks by itself."""
        if (models := self.models.peek()) is not None:
            models.notify_ingest()


def parts_of(request: Request) -> Parts:
    parts: Parts = request.app.state.parts
    return parts


PartsOf = Annotated[Parts, Depends(parts_of)]
