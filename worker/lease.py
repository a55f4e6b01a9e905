"""A claimed job's lease while it is worked on: a thread that extends it and passes on whatever asks its trainer to stop.

Three things end a trainer early: its job is to be cancelled, the worker shuts down (both ask it to write a checkpoint), or the lease is
lost, to another attempt or because the database was out of reach for as long as the lease lasts (it is killed: it owns nothing any more).
"""

from __future__ import annotations

import logging
import threading
import time
from types import TracebackType
from typing import Final

from sqlalchemy.exc import SQLAlchemyError

from server.db import jobs
from server.db.session import SyncDatabase
from server.db.tables import Job
from server.errors import JobLost
from worker.trainer_process import TrainerProcess

logger = logging.getLogger(__name__)

TICK_SECONDS: Final = 0.1
SLOWEST_BEAT_SECONDS: Final = 5.0
"""A request to cancel is seen at a beat: no later than this, however long the lease."""


class Lease:
    """Held from its start, the trainer's or long before: what a job needs may take longer to fetch than a lease lasts."""

    def __init__(self, database: SyncDatabase, job: Job, seconds: float, stopping: threading.Event) -> None:
        self.cancelled = False
        self.lost = False
        self._database = database
        self._job = job
        self._seconds = seconds
        self._trainer: TrainerProcess | None = None
        self._stopping = stopping
        self._held_until = time.monotonic() + seconds
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep, name=f"lease-{job.id}", daemon=True)

    def __enter__(self) -> Lease:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    def governs(self, trainer: TrainerProcess) -> None:
        """What has asked, or asks from now on, for an early end ends this trainer."""
        self._trainer = trainer

    def heard(self, cancel_requested: bool) -> None:
        """A write of the job succeeded under this attempt, and said whether the job is to be cancelled."""
        self.cancelled = self.cancelled or cancel_requested

    def lose(self) -> None:
        """A write was refused: another attempt has the job."""
        self.lost = True
        if self._trainer is not None:
            self._trainer.kill()

    def _keep(self) -> None:
        next_beat = time.monotonic()
        while not self._over.wait(TICK_SECONDS):
            if time.monotonic() >= next_beat:
                next_beat = time.monotonic() + min(self._seconds / 3, SLOWEST_BEAT_SECONDS)
                self._beat()
            if self._trainer is not None:
                self._end_early(self._trainer)

    def _end_early(self, trainer: TrainerProcess) -> None:
        if self.lost:
            trainer.kill()
        elif self.cancelled or self._stopping.is_set():
            trainer.stop()

    def _beat(self) -> None:
        started = time.monotonic()
        try:
            with self._database.write() as session:
                cancel_requested = jobs.heartbeat(session, self._job.id, self._job.attempt, self._seconds)
        except JobLost:
            self.lose()
        except SQLAlchemyError:
            logger.warning("job %s: the database is out of reach", self._job.id, exc_info=True)
            self.lost = time.monotonic() > self._held_until
        else:
            self._held_until = started + self._seconds
            self.heard(cancel_requested)
