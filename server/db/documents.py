"""The document's own transitions: its status, its tombstone. Knows nothing of uploads, listing or files.

Lock order, so that no two transactions wait for each other: the document's row first, then rows of its jobs; and one document only, or
several in the order of their ids.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import Select, select, update
from sqlalchemy.orm import Session

from server.db import material
from server.db.clock import db_now
from server.db.tables import Document, DocumentStatus, Job, JobKind, JobState
from server.errors import Conflict, DocumentNotFound

_S = DocumentStatus
_SOURCES: Final[dict[DocumentStatus, tuple[DocumentStatus, ...]]] = {
    _S.INGESTING: (_S.INGESTING, _S.RETRIEVAL_READY, _S.TRAINING, _S.READY, _S.FAILED, _S.CANCELLED),
    _S.RETRIEVAL_READY: (_S.INGESTING, _S.RETRIEVAL_READY, _S.TRAINING, _S.READY),
    _S.TRAINING: (_S.RETRIEVAL_READY, _S.TRAINING, _S.READY),
    _S.READY: (_S.RETRIEVAL_READY, _S.TRAINING, _S.READY),
    _S.FAILED: (_S.INGESTING,),
    _S.CANCELLED: (_S.INGESTING,),
}


def set_status(session: Session, document_id: str, tenant_id: str, status: DocumentStatus, error: dict[str, Any] | None = None) -> Document:
    """Move a live document to `status`; the only function that does.

    Raises DocumentNotFound for an absent, foreign or deleted document and Conflict for a transition that `DocumentStatus` does not have.
    """
    moved = (
        update(Document)
        .where(Document.id == document_id, Document.tenant_id == tenant_id, Document.deleted_at.is_(None))
        .where(Document.status.in_(_SOURCES[status]))
        .values(status=status, error=error, row_version=Document.row_version + 1, updated_at=db_now())
        .returning(Document)
    )
    document = session.scalars(moved, execution_options={"populate_existing": True}).one_or_none()
    if document is None:
        current = get_live(session, tenant_id, document_id).status
        raise Conflict(f"a document that is {current} cannot become {status}")
    return document


def get_live(session: Session, tenant_id: str, document_id: str) -> Document:
    document = session.scalars(_live(tenant_id, document_id)).one_or_none()
    if document is None:
        raise DocumentNotFound("no such document")
    return document


def lock(session: Session, tenant_id: str, document_id: str) -> Document | None:
    """The document's row, held until the transaction ends; None for a deleted one (its row is held all the same)."""
    held = (
        select(Document)
        .where(Document.id == document_id, Document.tenant_id == tenant_id)
        .with_for_update(key_share=True)
        .execution_options(populate_existing=True)
    )
    document = session.scalars(held).one_or_none()
    return document if document is not None and document.deleted_at is None else None


def tombstone(session: Session, tenant_id: str, document_id: str) -> list[Job]:
    """Delete a document in whatever state it is, and cancel its jobs and those that learn from it; from now on it is not found.

    Returns the jobs that still run: their workers see `cancel_requested` and stop. Files and vectors are the caller's to remove,
    after this transaction. Raises DocumentNotFound.
    """
    deleted = (
        update(Document)
        .where(Document.id == document_id, Document.tenant_id == tenant_id, Document.deleted_at.is_(None))
        .values(deleted_at=db_now(), updated_at=db_now(), row_version=Document.row_version + 1)
        .returning(Document.id)
    )
    if session.scalars(deleted).one_or_none() is None:
        raise DocumentNotFound("no such document")
    jobs = update(Job).where(material.concerns(tenant_id, document_id), Job.tenant_id == tenant_id)
    session.execute(
        jobs.where(Job.state == JobState.QUEUED).values(
            state=JobState.CANCELLED, cancel_requested=True, finished_at=db_now(), updated_at=db_now()
        )
    )
    material.forget_document(session, tenant_id, document_id)
    running = jobs.where(Job.state == JobState.RUNNING).values(cancel_requested=True, updated_at=db_now()).returning(Job)
    return list(session.scalars(running, execution_options={"populate_existing": True}))


def advance(session: Session, job: Job, status: DocumentStatus) -> None:
    """Let the document show what its job reached, unless it has gone on to something else: a newer revision, an ingest of its own.

    The document must be locked and live.
    """
    document = get_live(session, job.tenant_id, job.subject.document_id)
    if document.revision_id == job.revision_id and document.status in _SOURCES[status]:
        set_status(session, document.id, job.tenant_id, status)


def follow_job(session: Session, job: Job) -> None:
    """Let the document's status follow a job that failed or was cancelled. `job` must have been locked after its document.

    Only the job of the current revision moves the status, and only out of the status that the job itself stands for: a document that has
    gone on (deleted, uploaded again) is left alone. An older module stays in service, so its document is ready again.
    """
    if job.kind == JobKind.EXTRACTOR:
        return
    document = lock(session, job.tenant_id, job.subject.document_id)
    if document is None or document.revision_id != job.revision_id or _another_runs(session, job):
        return
    if job.kind == JobKind.INGEST and document.status == DocumentStatus.INGESTING:
        ended = DocumentStatus.CANCELLED if job.state == JobState.CANCELLED else DocumentStatus.FAILED
        set_status(session, document.id, job.tenant_id, ended, job.error)
    if job.kind == JobKind.TRAIN and document.status == DocumentStatus.TRAINING:
        before = DocumentStatus.READY if document.module_id else DocumentStatus.RETRIEVAL_READY
        set_status(session, document.id, job.tenant_id, before, job.error)


def _another_runs(session: Session, job: Job) -> bool:
    same_work = (Job.document_id == job.document_id, Job.tenant_id == job.tenant_id, Job.kind == job.kind)
    return session.scalar(select(Job.id).where(*same_work, Job.state == JobState.RUNNING, Job.id != job.id).limit(1)) is not None


def _live(tenant_id: str, document_id: str) -> Select[Document]:
    return select(Document).where(Document.id == document_id, Document.tenant_id == tenant_id, Document.deleted_at.is_(None))
