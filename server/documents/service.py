"""The rules of documents: uploading once, showing, listing, cancelling. What is done again and deleting are in files of their own."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import uuid
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from sqlalchemy.orm import Session

from server import audit
from server.db import documents, jobs, tables
from server.db.tables import DocumentStatus, JobKind, JobState
from server.documents import idempotency, repository
from server.documents.idempotency import Reservation
from server.documents.repository import Cursor, Found, NewDocument
from server.documents.schemas import Document, DocumentPage, Preset, Revision, Train, Uploaded
from server.documents.uploads import Upload
from server.errors import Conflict, InvalidInput, NotCancellable
from server.jobs.schemas import Job
from server.parts import Parts
from server.schemas import Failure
from server.transactions import reading, whole, writing

_ROUGHLY: Final = {JobKind.INGEST: 10.0, JobKind.TRAIN: 300.0}
"""Seconds for a document of a few pages with the preset `quick`, while a tenant has no history of its own."""
_TIMES: Final = {Preset.QUICK: 1.0, Preset.STANDARD: 3.5, Preset.PAPER: 60.0}
"""What a preset takes of that."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What an upload is answered: 202 and a new document, or 200 and the one that had these bytes already."""

    status: int
    body: dict[str, Any]

    @property
    def location(self) -> str:
        return f"/documents/{self.body['id']}"


async def upload(parts: Parts, tenant_id: str, received: Upload, reservation: Reservation | None) -> Outcome:
    """Keep the bytes, then one transaction: document, revision, ingest job, and the answer under its Idempotency-Key. Both or neither,
    also for a caller who leaves meanwhile."""
    return await whole(_upload(parts, tenant_id, received, reservation))


async def _upload(parts: Parts, tenant_id: str, received: Upload, reservation: Reservation | None) -> Outcome:
    new = _new_document(parts, tenant_id, received)
    await asyncio.to_thread(parts.blobs.adopt, received.file, new.blob)
    created = False
    try:
        outcome = await writing(parts.database, _insert, new, reservation, received.request_sha256(), parts.settings.max_attempts)
        created = outcome.status == 202
    finally:
        if not created:
            await asyncio.to_thread(parts.blobs.delete_prefix, f"{tenant_id}/{new.document_id}")
    parts.notify_ingest()
    return outcome


async def show(parts: Parts, tenant_id: str, document_id: str) -> Document:
    """Raises DocumentNotFound."""
    return shown(await reading(parts.database, repository.find, tenant_id, document_id))


async def listed(
    parts: Parts, tenant_id: str, *, after: str | None, limit: int, order: repository.Order, status: DocumentStatus | None
) -> DocumentPage:
    """Raises InvalidInput for a cursor that no page gave."""
    cursor = None if after is None else _cursor(after)
    items, following = await reading(parts.database, repository.page, tenant_id, after=cursor, limit=limit, order=order, status=status)
    return DocumentPage(items=[shown(found) for found in items], next=None if following is None else _opaque(following))


async def cancel(parts: Parts, tenant_id: str, document_id: str) -> Document:
    """Stop the job under way: at once if it is queued, soon if it runs. Raises DocumentNotFound, NotCancellable."""
    return shown(await writing(parts.database, _cancel, tenant_id, document_id))


def shown(found: Found) -> Document:
    return Document(**_members(found))


def _members(found: Found) -> dict[str, Any]:
    row = found.document
    names = ("id", "title", "external_id", "filename", "row_version", "created_at", "updated_at")
    return {
        **{name: getattr(row, name) for name in names},
        "metadata": row.meta,
        "train": Train(row.train),
        "preset": Preset(row.preset),
        "status": DocumentStatus(row.status),
        "error": None if row.error is None else Failure.model_validate(row.error),
        "revision": Revision.model_validate(found.revision),
        "module": found.module,
        "job": None if found.job is None else Job.of(found.job),
    }


def _new_document(parts: Parts, tenant_id: str, received: Upload) -> NewDocument:
    document_id, revision_id = f"doc_{uuid.uuid4().hex}", f"rev_{uuid.uuid4().hex}"
    return NewDocument(
        document_id=document_id,
        revision_id=revision_id,
        tenant_id=tenant_id,
        title=received.title,
        external_id=received.fields.external_id,
        filename=received.filename,
        meta=received.fields.metadata,
        train=received.fields.train,
        preset=received.fields.preset or parts.settings.default_preset,
        sha256=received.sha256,
        size=received.size,
        blob=f"{tenant_id}/{document_id}/{revision_id}",
    )


def _insert(session: Session, new: NewDocument, reservation: Reservation | None, request_sha256: str, max_attempts: int) -> Outcome:
    created = repository.add(session, new)
    if created:
        enqueue(session, documents.get_live(session, new.tenant_id, new.document_id), JobKind.INGEST, max_attempts)
        audit.record(session, new.tenant_id, "upload", document_id=new.document_id, size=new.size)
    document_id = new.document_id if created else repository.same_content(session, new.tenant_id, new.sha256)
    if document_id is None:
        raise Conflict("a document with these bytes was deleted at this moment; send it again")
    found = repository.find(session, new.tenant_id, document_id)
    answer = Uploaded(**_members(found), eta_seconds=_eta(session, found))
    outcome = Outcome(status=202 if created else 200, body=answer.model_dump(mode="json"))
    if reservation is not None:
        idempotency.finish(session, reservation, request_sha256=request_sha256, status=outcome.status, response=outcome.body)
    return outcome


def _eta(session: Session, found: Found) -> float:
    """Seconds until the document has settled; 0 for one that has."""
    document = shown(found)
    if document.settled:
        return 0.0
    mean = partial(repository.mean_seconds, session, found.document.tenant_id)
    ingest = (mean(JobKind.INGEST) or _ROUGHLY[JobKind.INGEST]) if document.status == DocumentStatus.INGESTING else 0.0
    rough = _ROUGHLY[JobKind.TRAIN] * _TIMES[document.preset]
    train = (mean(JobKind.TRAIN) or rough) if document.train == Train.AUTO else 0.0
    return round(ingest + train, 1)


def _cancel(session: Session, tenant_id: str, document_id: str) -> Found:
    documents.get_live(session, tenant_id, document_id)
    job = repository.newest_job(session, tenant_id, document_id)
    if job is None or job.state not in (JobState.QUEUED, JobState.RUNNING):
        raise NotCancellable("nothing is under way for this document")
    jobs.request_cancel(session, tenant_id, job.id)
    return repository.find(session, tenant_id, document_id)


def enqueue(session: Session, document: tables.Document, kind: JobKind, max_attempts: int, **params: Any) -> None:
    """Queue work on the document's current revision."""
    jobs.enqueue(
        session,
        tenant_id=document.tenant_id,
        document_id=document.id,
        revision_id=document.revision_id,
        kind=kind,
        params={"preset": document.preset, **params} if kind == JobKind.TRAIN else params,
        max_attempts=max_attempts,
    )


def _opaque(cursor: Cursor) -> str:
    return base64.urlsafe_b64encode(json.dumps(cursor).encode()).decode().rstrip("=")


def _cursor(text: str) -> Cursor:
    try:
        created_at, document_id = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
        cursor = float(created_at), str(document_id)
    except (ValueError, TypeError, RecursionError):
        cursor = math.nan, ""
    if not math.isfinite(cursor[0]) or not cursor[1].isprintable():
        raise InvalidInput("`after` is no cursor; take it from `next` of the page before")
    return cursor
