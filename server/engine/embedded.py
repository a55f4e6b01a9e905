"""The engine of one process: a thread that steps, a mailbox for what others want of it, streams for what it tells them.

Knows threads and event loops; what a step is stands in `batch_engine`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Lock, Thread

from server.engine.adapter_loader import Read
from server.engine.apart import apart
from server.engine.base_model import BaseModel
from server.engine.batch_engine import BatchEngine
from server.engine.options import EngineOptions
from server.engine.outbox import Outbox
from server.engine.request import ArtefactRef, Delta, EngineRequest, Score, Tier
from server.engine.sequence import Event, Live
from server.errors import EngineStopped, KmserveError, Unavailable
from server.modules.artefact import read_artefact

logger = logging.getLogger(__name__)

_PATIENCE_SECONDS = 0.5
"""Where all requests wait for loads, deadlines are looked at this often."""


class EmbeddedEngine:
    """Implements `Engine`. Holds the model from construction until `drain` has put it back as it was."""

    def __init__(
        self, base: BaseModel, *, options: EngineOptions | None = None, read: Read = read_artefact, below: Read | None = None
    ) -> None:
        self._options = options or EngineOptions()
        self._mailbox: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._outbox = Outbox()
        self._batch = apart(BatchEngine, base, self._options, read, wake=self._wake, below=below)
        self._accepting = False
        self._gate = Lock()
        self._thread = Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        self._accepting = True
        self._thread.start()

    async def submit(self, request: EngineRequest) -> AsyncGenerator[Delta, None]:
        queue, emit = self._outbox.open()
        sequence = self._batch.generation(request, emit)
        self._enter(sequence)
        try:
            finished = False
            while not finished:
                delta = await _next(queue)
                assert isinstance(delta, Delta)
                finished = delta.finish_reason is not None
                yield delta
        finally:
            self._leave(sequence)

    async def score(self, request: EngineRequest, continuations: Sequence[str]) -> list[Score]:
        queue, emit = self._outbox.open()
        sequence = self._batch.scoring(request, continuations, emit)
        self._enter(sequence)
        try:
            event = await _next(queue)
        finally:
            self._leave(sequence)
        if isinstance(event, Delta):
            raise Unavailable("The request was cancelled.")
        return event

    def cancel(self, request_id: str) -> None:
        self._mailbox.put(partial(self._batch.cancel, request_id))

    def prefetch(self, artefact: ArtefactRef) -> None:
        if self._accepting:
            self._batch.prefetch(artefact)

    def evict(self, directory: Path, error: KmserveError) -> None:
        self._mailbox.put(partial(self._batch.evict, directory, error))

    def forget(self, tenant: str) -> None:
        self._mailbox.put(partial(self._batch.forget, tenant))

    def stats(self) -> dict[str, float]:
        return self._batch.stats()

    def residency(self) -> dict[Path, Tier]:
        return self._batch.residency()

    async def drain(self, grace: float | None = None) -> None:
        """Refuse new requests, finish those in flight, after `grace` seconds cancel the rest, give the model back."""
        with self._gate:
            self._accepting = False
        if self._thread.ident is None:
            self._batch.close()
            return
        self._wake()
        await asyncio.to_thread(self._thread.join, grace)
        if self._thread.is_alive():
            self._mailbox.put(self._batch.cancel_all)
            await asyncio.to_thread(self._thread.join)

    def _enter(self, sequence: Live) -> None:
        with self._gate:
            if not self._accepting:
                raise EngineStopped("The engine is stopping; try again when the server is back.")
            self._mailbox.put(partial(self._batch.add, sequence))

    def _leave(self, sequence: Live) -> None:
        """Nobody listens any more; a sequence that has ended does not notice."""
        sequence.cancelled = True
        self._wake()

    def _wake(self) -> None:
        self._mailbox.put(lambda: None)

    def _run(self) -> None:
        try:
            self._serve()
        except BaseException:
            logger.exception("the engine's thread stopped")
        finally:
            self._stop()

    def _serve(self) -> None:
        """Sleep until there is mail, step while there is work."""
        while self._accepting or len(self._batch.scheduler) or not self._mailbox.empty():
            self._read_mail(wait=True)
            with self._options.cores.active() if self._options.cores else nullcontext():
                while len(self._batch.scheduler):
                    stepped = self._batch.step()
                    self._outbox.flush()
                    self._read_mail(wait=not stepped and len(self._batch.scheduler) > 0, seconds=_PATIENCE_SECONDS)
            self._outbox.flush()

    def _read_mail(self, wait: bool, seconds: float | None = None) -> None:
        """All that has come; first wait for something, for ever or so many seconds."""
        try:
            command = self._mailbox.get(block=wait, timeout=seconds)
            while True:
                command()
                command = self._mailbox.get_nowait()
        except Empty:
            return

    def _stop(self) -> None:
        """Leave nobody waiting, whatever ended the thread."""
        with self._gate:
            self._accepting = False
        self._read_mail(wait=False)
        self._batch.fail_all(EngineStopped("The engine has stopped; try again when the server is back."))
        self._outbox.flush()
        self._batch.close()


async def _next(queue: asyncio.Queue[Event]) -> Delta | list[Score]:
    event = await queue.get()
    if isinstance(event, Exception):
        raise event
    return event
