"""The synchronous job functions through the API's asynchronous session."""

from __future__ import annotations

from pathlib import Path

from server.db import jobs
from server.db.migrate import upgrade
from server.db.session import Database
from server.db.tables import JobKind, JobState
from tests.support.databases import sqlite_url
from tests.support.rows import training, upload


async def test_a_job_lives_through_run_sync(tmp_path: Path) -> None:
    upgrade(sqlite_url(tmp_path))
    database = Database(sqlite_url(tmp_path))
    async with database.write() as session:
        job = await session.run_sync(lambda sync: training(sync, upload(sync)))
    assert (job.state, job.cancel_requested, job.created_at > 0) == (JobState.QUEUED, False, True)
    async with database.write() as session:
        claimed = await session.run_sync(jobs.claim, JobKind.TRAIN, "api", 60.0)
    assert claimed is not None
    assert (claimed.id, claimed.attempt) == (job.id, 1)
    async with database.write() as session:
        assert await session.run_sync(jobs.request_cancel, "acme", job.id) == JobState.RUNNING
    await database.close()
