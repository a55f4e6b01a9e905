"""The loop that ingests uploads inside the API's process, which owns the vector index: claim -> parse, split, embed, index -> publish.

A few lanes serve one job each; `notify` wakes them, and they look by themselves every few seconds. A job that ends badly takes its
vectors and text with it before its row says so. Knows nothing of HTTP or formats.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import uuid
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Concatenate, Final, ParamSpec, Protocol, TypeVar

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from server.db import jobs
from server.db.blobs import BlobStore
from server.db.session import Database
from server.db.tables import Job, JobKind, JobState
from server.errors import DocumentNotFound, IndexUnavailable, JobLost, KmserveError, StorageFull
from server.jobs import ingest_records
from server.jobs.ingest_records import IngestStopped, Remains, Upload
from server.retrieval.ingest import Ingested, Report, Source, Stage
from server.traces import without_text
from server.transactions import reading, writing

logger = logging.getLogger(__name__)

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

LANES: Final = 2
"""So that one long document does not keep a short one waiting."""
POLL_SECONDS: Final = 2.0
SLOWEST_BEAT_SECONDS: Final = 2.0
_UNITS: Final = {Stage.EMBEDDING: "passages", Stage.INDEXING: "passages"}


class Ingests(Protocol):
    """What the loop asks of retrieval."""

    async def ingest(self, source: Source, report: Report) -> Ingested: ...

    async def forget(self, tenant_id: str, document_id: str, revision_id: str) -> None: ...


class IngestLoop:
    """`ring` wakes a training worker; `run` ends when it is cancelled, and then hands its jobs back."""

    def __init__(
        self,
        *,
        database: Database,
        blobs: BlobStore,
        ingestor: Ingests,
        ring: Callable[[], object],
        lease_seconds: float,
        max_attempts: int,
        poll_seconds: float = POLL_SECONDS,
    ) -> None:
        self._database = database
        self._blobs = blobs
        self._ingestor = ingestor
        self._ring = ring
        self._lease_seconds = lease_seconds
        self._max_attempts = max_attempts
        self._poll_seconds = poll_seconds
        self._owner = f"ingest-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._wanted = asyncio.Event()

    def notify(self) -> None:
        """There is a new job. From the loop's own thread."""
        self._wanted.set()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as lanes:
            for _ in range(LANES):
                lanes.create_task(self._lane())

    async def run_once(self) -> bool:
        """Serve the next job to its end; whether there was one."""
        job = await self._claim()
        if job is not None:
            await self._serve(job)
        return job is not None

    async def _claim(self) -> Job | None:
        claim = asyncio.create_task(self._write(jobs.claim, JobKind.INGEST, self._owner, self._lease_seconds))
        try:
            return await asyncio.shield(claim)
        except asyncio.CancelledError:
            if (job := await claim) is not None:
                await self._hand_back(job)
            raise

    async def _lane(self) -> None:
        while True:
            self._wanted.clear()
            if not await self._survive():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._poll_seconds):
                        await self._wanted.wait()

    async def _survive(self) -> bool:
        """A database out of reach, or a defect of ours, must not end the loop: the lease runs out and the job is taken up again."""
        try:
            return await self.run_once()
        except Exception:
            logger.exception("the ingest loop goes on after an error")
            return False

    async def _serve(self, job: Job) -> None:
        try:
            await self._attempt(job)
        except JobLost:
            await self._after_loss(job)

    async def _attempt(self, job: Job) -> None:
        """One job to its end, whatever happens; only when the database fails it is left to its lease. Raises JobLost."""
        try:
            training = await self._watched(job, self._ingest(job))
        except asyncio.CancelledError:
            await self._hand_back(job)
            raise
        except (IngestStopped, DocumentNotFound):
            await self._undo(job)
            await self._write(jobs.cancelled, job.id, job.attempt)
        except IndexUnavailable as error:
            await self._write(jobs.retry, job.id, job.attempt, code=error.code, message=error.detail)
        except (JobLost, SQLAlchemyError):
            raise
        except Exception as error:
            code, message = _failure(job, error)
            await self._undo(job)
            await self._write(jobs.fail, job.id, job.attempt, code=code, message=message)
        else:
            if training:
                await asyncio.to_thread(self._ring)

    async def _watched(self, job: Job, work: Coroutine[Any, Any, bool]) -> bool:
        """Do the work while extending the lease, and cut it short when the job is to be cancelled.

        A lost lease is left to the work to notice, whose every write is fenced: it may just have ended the job itself.
        """
        task = asyncio.create_task(work)
        try:
            with contextlib.suppress(JobLost):
                while not (await asyncio.wait({task}, timeout=min(self._lease_seconds / 3, SLOWEST_BEAT_SECONDS)))[0]:
                    if await self._write(jobs.heartbeat, job.id, job.attempt, self._lease_seconds):
                        raise IngestStopped
            return await task
        finally:
            if not task.done():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    async def _ingest(self, job: Job) -> bool:
        """Whether there is a training to ring for."""
        upload = await self._read(ingest_records.upload_of, job)
        ingested = await self._ingestor.ingest(self._source(job, upload), partial(self._report, job))
        await asyncio.to_thread(self._blobs.write_text, upload.text_blob, ingested.parsed.text)
        return await self._write(ingest_records.finish, job, ingested, self._max_attempts)

    async def _report(self, job: Job, stage: Stage, done: int, total: int) -> None:
        unit = _UNITS.get(stage, "documents")
        await self._write(ingest_records.report, job, stage=stage, done=done, total=total, unit=unit)

    async def _hand_back(self, job: Job) -> None:
        """The server shuts down: another may go on at once. A job that was to be cancelled anyway ends here."""
        try:
            released = await self._write(jobs.release, job.id, job.attempt)
        except JobLost:
            await self._after_loss(job)
        else:
            if released.state == JobState.CANCELLED and not await self._read(ingest_records.lives, job):
                await self._undo(job)

    async def _after_loss(self, job: Job) -> None:
        """The job goes on elsewhere; but for a deleted document nobody else may come to remove what this attempt wrote last."""
        logger.info("job %s belongs to another attempt", job.id)
        if not await self._read(ingest_records.lives, job):
            await self._undo(job)

    async def _undo(self, job: Job) -> None:
        """Remove what the job wrote: its vectors, passages and text; of a deleted document whatever is left. Raises JobLost."""
        remains = await self._write(ingest_records.withdraw, job, self._lease_seconds)
        try:
            await asyncio.to_thread(self._remove_files, remains)
            subject = job.subject
            await self._ingestor.forget(subject.tenant_id, subject.document_id, subject.revision_id)
        except (KmserveError, OSError):
            logger.exception("job %s: what it wrote could not be removed", job.id)

    def _remove_files(self, remains: Remains) -> None:
        self._blobs.delete(remains.upload.text_blob)
        if not remains.lives:
            self._blobs.delete_prefix(remains.upload.blob.rpartition("/")[0])

    def _source(self, job: Job, upload: Upload) -> Source:
        owner = vars(job.subject)
        return Source(**owner, path=self._blobs.path(upload.blob), filename=upload.filename)

    async def _write(
        self, step: Callable[Concatenate[Session, Arguments], Result], *arguments: Arguments.args, **named: Arguments.kwargs
    ) -> Result:
        return await writing(self._database, step, *arguments, **named)

    async def _read(self, step: Callable[[Session, Job], Result], job: Job) -> Result:
        return await reading(self._database, step, job)


def _failure(job: Job, error: Exception) -> tuple[str, str]:
    """Code and message for the document's owner; what is our defect goes to the log only."""
    if isinstance(error, KmserveError):
        return error.code, error.detail
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return StorageFull.code, "the server's disk is full; try again when there is room"
    logger.error("job %s failed: %s", job.id, without_text(error))
    return KmserveError.code, "the server failed to read this document; retry it, or look at the server's log"
