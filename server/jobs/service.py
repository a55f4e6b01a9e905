"""Looking at jobs. Their life is `db/jobs.py`."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from server.db.tables import Document, Job
from server.errors import JobNotFound


def find(session: Session, tenant_id: str, job_id: str) -> Job:
    """A job of a document that still exists. Raises JobNotFound."""
    mine = (
        select(Job)
        .join(Document, Document.id == Job.document_id)
        .where(Job.id == job_id, Job.tenant_id == tenant_id, Document.tenant_id == tenant_id, Document.deleted_at.is_(None))
    )
    job = session.scalars(mine).one_or_none()
    if job is None:
        raise JobNotFound("no such job")
    return job
