"""What an ingest job reads from and writes to the database, each one transaction's worth; synchronous over `Session`."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy.orm import Session

from server.db import documents, jobs, passages
from server.db.passages import NewPassage
from server.db.tables import Document, DocumentStatus, Job, JobKind
from server.errors import DocumentNotFound
from server.retrieval.ingest import Ingested


class IngestStopped(Exception):
    """The job is to be cancelled."""


@dataclass(frozen=True, kw_only=True)
class Upload:
    """Where the bytes of the job's revision lie, and what they were called."""

    blob: str
    filename: str | None

    @property
    def text_blob(self) -> str:
        """The key of the parsed text."""
        return f"{self.blob}.txt"


@dataclass(frozen=True, kw_only=True)
class Remains:
    """What is left of an ingest that is not to be: files under `upload`; all the document's, unless it `lives`."""

    upload: Upload
    lives: bool


def upload_of(session: Session, job: Job) -> Upload:
    """Raises DocumentNotFound for a document that was deleted meanwhile."""
    document = documents.get_live(session, job.tenant_id, job.subject.document_id)
    return Upload(blob=passages.revision(session, job.tenant_id, job.subject.revision_id).blob, filename=document.filename)


def report(session: Session, job: Job, *, stage: str, done: int, total: int, unit: str) -> None:
    """Raises JobLost, IngestStopped."""
    if jobs.progress(session, job.id, job.attempt, stage=stage, done=done, total=total, unit=unit):
        raise IngestStopped


def finish(session: Session, job: Job, ingested: Ingested, max_attempts: int) -> bool:
    """Publish the passages, end the job and queue the training; whether there is one to ring for.

    All or nothing, for a document that lives, under an attempt that is ours. Raises JobLost, IngestStopped, DocumentNotFound.
    """
    if jobs.hold(session, job.id, job.attempt).cancel_requested:
        raise IngestStopped
    document = documents.get_live(session, job.tenant_id, job.subject.document_id)
    passages.replace(session, job, [_row(name, ingested) for name in ingested.passages])
    parsed = ingested.parsed
    passages.describe_revision(session, job, media_type=parsed.media_type, pages=parsed.page_count, tokens=ingested.tokens)
    jobs.succeed(session, job.id, job.attempt)
    return _advance(session, job, document, max_attempts)


def withdraw(session: Session, job: Job, lease_seconds: float) -> Remains:
    """Drop the passages of a revision that is not to be.

    From a live document only the attempt that holds the job may take anything, lest a straggler undoes what its successor published; it
    gets `lease_seconds` to remove the rest. Raises JobLost.
    """
    live = lives(session, job)
    if live:
        jobs.heartbeat(session, job.id, job.attempt, lease_seconds)
    passages.delete_revision(session, job.tenant_id, job.subject.revision_id)
    # Not read from the revision's row, which goes with a deleted document before its last attempt may have noticed.
    blob = f"{job.tenant_id}/{job.document_id}/{job.revision_id}"
    return Remains(upload=Upload(blob=blob, filename=None), lives=live)


def lives(session: Session, job: Job) -> bool:
    try:
        documents.get_live(session, job.tenant_id, job.subject.document_id)
    except DocumentNotFound:
        return False
    return True


def _advance(session: Session, job: Job, document: Document, max_attempts: int) -> bool:
    """A document whose content was replaced meanwhile waits for the newer revision's ingest."""
    if document.revision_id != job.revision_id:
        return False
    documents.set_status(session, document.id, job.tenant_id, DocumentStatus.RETRIEVAL_READY)
    if job.params.get("keep_module"):
        documents.set_status(session, document.id, job.tenant_id, DocumentStatus.READY)
        return False
    if document.train != "auto":
        return False
    jobs.enqueue(
        session,
        **vars(job.subject),
        kind=JobKind.TRAIN,
        params={"preset": document.preset},
        max_attempts=max_attempts,
    )
    documents.set_status(session, document.id, job.tenant_id, DocumentStatus.TRAINING)
    return True


def _row(name: str, ingested: Ingested) -> NewPassage:
    passage = ingested.passages[name]
    span = {"char_start": passage.char_start, "char_end": passage.char_end}
    return NewPassage(id=name, ordinal=passage.ordinal, text=passage.text, page=passage.page, tokens=passage.tokens, **span)
