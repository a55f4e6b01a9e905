"""The worker's loop: claim a queued training, run its trainer under a lease, publish or settle, until nothing is queued.

Knows the order of things; the details are next door: lease.py, trainer_process.py, publish.py, settle.py.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from sqlalchemy.exc import NoResultFound, SQLAlchemyError

from server.db import jobs
from server.db.blobs import BlobStore
from server.db.session import SyncDatabase
from server.db.tables import Job, JobKind, JobState
from server.errors import DocumentNotFound, DocumentTextMissing, JobFailure, JobLost, KmserveError, ObjectStoreUnavailable
from server.settings import Settings
from server.storage.object_store import open_modules
from server.traces import frames_in, without_text
from worker.events import Event, ExitCode, Failure, Metrics, Progress, Result
from worker.extractor_spec import build_extractor_spec
from worker.lease import Lease
from worker.publish import publish
from worker.publish_extractor import publish_extractor
from worker.settle import Run, settle
from worker.spec import artefacts_of, build_spec, secrets_of
from worker.trainer_process import TrainerProcess
from worker.workspace import Workspace

logger = logging.getLogger(__name__)

TRAINER: Final = (sys.executable, "-m", "worker.train")
GRACE_SECONDS: Final = 30.0
PROGRESS_SECONDS: Final = 0.5
"""Progress within a stage is written no more often than this."""


class Supervisor:
    """`stopping` is set when the worker shuts down; `command` is the trainer's, without its argument."""

    def __init__(
        self,
        settings: Settings,
        database: SyncDatabase,
        *,
        stopping: threading.Event,
        command: Sequence[str] = TRAINER,
        grace_seconds: float = GRACE_SECONDS,
    ) -> None:
        self._settings = settings
        self._database = database
        self._stopping = stopping
        self._command = command
        self._grace = grace_seconds
        self._store = open_modules(settings)
        self._blobs = BlobStore(settings.root / "blobs")
        self._owner = f"{socket.gethostname()}:{os.getpid()}"

    def work(self) -> None:
        """Train until nothing is queued, the worker shuts down or its GPU is busy (then the reaper rings again later)."""
        while not self._stopping.is_set():
            with self._database.write() as session:
                job = jobs.claim(session, jobs.WORKER_KINDS, self._owner, self._settings.lease_seconds)
            if job is None or self.train(job) == ExitCode.GPU_BUSY:
                return

    def train(self, job: Job) -> int | None:
        """Run one claimed job to where its trainer leaves it. Returns the trainer's exit code, None when there is none that counts."""
        logger.info("job %s: attempt %d starts", job.id, job.attempt)
        workspace = Workspace(self._settings.root, job)
        code: int | None = None
        try:
            try:
                run = self._run(job, workspace)
                code, ended = run.code, self._end(job, workspace, run)
            except (OSError, ValueError, DocumentNotFound, DocumentTextMissing, ObjectStoreUnavailable, NoResultFound) as error:
                ended = self._give_up(job, error)
        except JobLost:
            logger.warning("job %s: attempt %d lost its lease, another has the job", job.id, job.attempt)
            return None
        self._leave(ended, workspace)
        return code

    def _run(self, job: Job, workspace: Workspace) -> Run:
        with self._database.read() as session:
            if job.kind == JobKind.EXTRACTOR:
                spec = build_extractor_spec(session, job, self._settings, self._store)
            else:
                spec = build_spec(session, job, self._settings, self._blobs, self._store)
        with ExitStack() as held:
            lease = held.enter_context(Lease(self._database, job, self._settings.lease_seconds, self._stopping))
            for artefact in artefacts_of(spec):
                held.enter_context(self._store.kept(Path(artefact["directory"]), artefact["manifest_sha256"]))
            workspace.prepare(spec)
            return self._supervise(job, workspace, lease)

    def _supervise(self, job: Job, workspace: Workspace, lease: Lease) -> Run:
        secrets = secrets_of(self._settings)
        process = TrainerProcess(self._command, workspace.directory, workspace.log, grace_seconds=self._grace, secrets=secrets)
        with process as trainer:
            lease.governs(trainer)
            report = _Report(self._database, job, lease)
            for event in trainer.events():
                report.take(event)
            code = trainer.wait()
        flags = {"cancelled": lease.cancelled, "lost": lease.lost, "stopped": trainer.asked_to_stop}
        run = Run(code=code, result=report.result, failure=report.failure, **flags)
        if run.crashed:
            # Its log may quote the document. It stays in the job's directory, and while the job is tried again can be read there.
            where = frames_in(trainer.last_words()) or "its log does not say where"
            logger.error("job %s: the trainer ended with %d, its log is %s: %s", job.id, code, workspace.log, where)
        return run

    def _end(self, job: Job, workspace: Workspace, run: Run) -> Job:
        if run.lost:
            raise JobLost("the job belongs to another attempt")
        if run.code == ExitCode.RESULT and run.result is not None:
            return self._publish(job, workspace.inside(run.result.artefact), run.result)
        with self._database.write() as session:
            return settle(session, job, run)

    def _publish(self, job: Job, artefact: Path, result: Result) -> Job:
        if job.kind != JobKind.EXTRACTOR:
            return publish(self._database, self._store, job, artefact, result)
        wearing, attempts = self._settings.modules_wear_extractor, self._settings.max_attempts
        return publish_extractor(self._database, self._store, job, artefact, result, wearing=wearing, max_attempts=attempts)

    def _give_up(self, job: Job, error: Exception) -> Job:
        """After an attempt that failed around its trainer: a full disk, an artefact that is not what was said, a document that is gone."""
        logger.error("job %s: attempt %d could not be run or published: %s", job.id, job.attempt, without_text(error))
        code = error.code if isinstance(error, KmserveError) else JobFailure.code
        message = error.detail if isinstance(error, KmserveError) else "the attempt failed outside training; the worker's log says why"
        with self._database.write() as session:
            return jobs.retry(session, job.id, job.attempt, code=code, message=message)

    def _leave(self, job: Job, workspace: Workspace) -> None:
        logger.info("job %s: attempt %d ended, the job is %s", job.id, job.attempt, job.state)
        if job.state != JobState.QUEUED:
            workspace.remove()


class _Report:
    """Copies what the trainer says to the job's row; keeps the last word."""

    def __init__(self, database: SyncDatabase, job: Job, lease: Lease) -> None:
        self.result: Result | None = None
        self.failure: Failure | None = None
        self._database = database
        self._job = job
        self._lease = lease
        self._stage: str | None = None
        self._written_at = 0.0

    def take(self, event: Event) -> None:
        match event:
            case Result():
                self.result = event
            case Failure():
                self.failure = event
            case Progress() if self._too_soon(event):
                return
            case Progress() | Metrics():
                self._write(event)

    def _write(self, event: Progress | Metrics) -> None:
        """A database out of reach costs a line of progress here; whether it costs the job is for the lease to say."""
        try:
            with self._database.write() as session:
                if isinstance(event, Progress):
                    self._lease.heard(jobs.progress(session, self._job.id, self._job.attempt, **vars(event)))
                else:
                    jobs.record_metrics(session, self._job.id, self._job.attempt, event.metrics)
        except JobLost:
            self._lease.lose()
        except SQLAlchemyError:
            logger.warning("job %s: could not write its progress", self._job.id, exc_info=True)

    def _too_soon(self, event: Progress) -> bool:
        now = time.monotonic()
        if event.stage == self._stage and event.done < event.total and now - self._written_at < PROGRESS_SECONDS:
            return True
        self._stage, self._written_at = event.stage, now
        return False
