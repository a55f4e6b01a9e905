"""Looking at jobs, waiting for one, and cancelling it. Their life is `db/jobs.py`."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from server.db import jobs, tables
from server.db.tables import Document, Extractor, JobState
from server.errors import JobNotFound, NotCancellable
from server.jobs.schemas import Job
from server.parts import Parts
from server.transactions import reading, writing

LONGEST_WAIT_SECONDS: Final = 60
LOOK_SECONDS: Final = 0.3


async def show(parts: Parts, tenant_id: str, job_id: str, *, wait: float = 0) -> Job:
    """The job as it is when it has ended, or after `wait` seconds. Raises JobNotFound."""
    deadline = time.monotonic() + wait
    job = await reading(parts.database, find, tenant_id, job_id)
    while job.under_way and (left := deadline - time.monotonic()) > 0:
        await asyncio.sleep(min(LOOK_SECONDS, left))
        job = await reading(parts.database, find, tenant_id, job_id)
    return job


async def cancel(parts: Parts, tenant_id: str, job_id: str) -> Job:
    """Stop a job: at once if it is queued, soon if it runs. Raises JobNotFound, NotCancellable."""
    return await writing(parts.database, _cancel, tenant_id, job_id)


def find(session: Session, tenant_id: str, job_id: str) -> Job:
    """A job of a document that still exists, or of an extractor. Raises JobNotFound."""
    row = _row(session, tenant_id, job_id)
    published = select(Extractor.id).where(Extractor.job_id == row.id, Extractor.deleted_at.is_(None))
    return Job.of(row, session.scalars(published).first())


def _cancel(session: Session, tenant_id: str, job_id: str) -> Job:
    if _row(session, tenant_id, job_id).state not in (JobState.QUEUED, JobState.RUNNING):
        raise NotCancellable("the job has ended")
    jobs.request_cancel(session, tenant_id, job_id)
    return find(session, tenant_id, job_id)


def _row(session: Session, tenant_id: str, job_id: str) -> tables.Job:
    mine = (
        select(tables.Job)
        .outerjoin(Document, (Document.id == tables.Job.document_id) & (Document.tenant_id == tenant_id) & Document.deleted_at.is_(None))
        .where(tables.Job.id == job_id, tables.Job.tenant_id == tenant_id)
        .where(or_(Document.id.is_not(None), tables.Job.document_id.is_(None)))
    )
    job = session.scalars(mine, execution_options={"populate_existing": True}).one_or_none()
    if job is None:
        raise JobNotFound("no such job")
    return job
