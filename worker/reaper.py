"""The worker's reaper: a thread that looks for jobs of dead workers and forgotten bells, at the start and then on a timer.

It also removes the directories of jobs that ended without their worker: failed by a reaper, or cancelled while they were queued again.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from server.db import jobs
from server.db.session import SyncDatabase
from server.db.tables import Job, JobState
from server.settings import Settings
from worker.workspace import leftovers, remove

logger = logging.getLogger(__name__)


class Reaper:
    def __init__(self, settings: Settings, database: SyncDatabase, ring: Callable[[], object]) -> None:
        self._settings = settings
        self._database = database
        self._ring = ring
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reaper", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join()

    def round(self) -> bool:
        """Look once; true when a worker should look at the table."""
        with self._database.write() as session:
            reaped = jobs.reap_once(session, ring_seconds=self._settings.ring_seconds)
        for job in reaped.jobs:
            logger.warning("job %s: attempt %d was not heard of any more, the job is %s", job.id, job.attempt, job.state)
        self._remove_leftovers()
        return reaped.ring

    def _run(self) -> None:
        ring = True  # whatever was rung for before this worker started may be lost
        while True:
            try:
                ring = self.round() or ring
            except (SQLAlchemyError, OSError):
                logger.warning("the reaper's round failed, it tries again", exc_info=True)
            if ring:
                self._ring()
            ring = False
            if self._over.wait(self._settings.reap_seconds):
                return

    def _remove_leftovers(self) -> None:
        found = leftovers(self._settings.root)
        if not found:
            return
        with self._database.read() as session:
            alive = session.scalars(select(Job.id).where(Job.id.in_(found), Job.state.in_((JobState.QUEUED, JobState.RUNNING)))).all()
        for job_id in found.keys() - set(alive):
            logger.info("job %s: removing what it left behind", job_id)
            remove(found[job_id])
