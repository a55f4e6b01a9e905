"""SQL of documents as the API lists and shows them, and of their first insert. Status and tombstone are `db/documents.py`'s."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import ColumnElement, Select, func, insert, select, tuple_
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from server.db.clock import db_now
from server.db.documents import get_live
from server.db.tables import Document, DocumentStatus, Job, JobKind, JobState, Module, Passage, Revision

Order = Literal["asc", "desc"]
Cursor = tuple[float, str]
_HISTORY = 20


@dataclass(frozen=True, kw_only=True)
class Found:
    """A document with its current revision, its active module and its newest job."""

    document: Document
    revision: Revision
    module: Module | None
    job: Job | None


@dataclass(frozen=True, kw_only=True)
class NewDocument:
    """An upload that is on the disk already, under the key `blob`."""

    document_id: str
    revision_id: str
    tenant_id: str
    title: str
    external_id: str | None
    filename: str | None
    meta: dict[str, Any]
    train: str
    preset: str
    sha256: str
    size: int
    blob: str


def find(session: Session, tenant_id: str, document_id: str) -> Found:
    """Raises DocumentNotFound."""
    return _complete(session, tenant_id, [get_live(session, tenant_id, document_id)])[0]


def row_version(session: Session, tenant_id: str, document_id: str) -> int:
    """Raises DocumentNotFound."""
    return get_live(session, tenant_id, document_id).row_version


def page(
    session: Session, tenant_id: str, *, after: Cursor | None, limit: int, order: Order, status: DocumentStatus | None
) -> tuple[list[Found], Cursor | None]:
    """At most `limit` documents after the cursor, and the cursor of the page that follows."""
    key = tuple_(Document.created_at, Document.id)
    wanted: Select[Document] = select(Document).where(Document.tenant_id == tenant_id, Document.deleted_at.is_(None))
    if status is not None:
        wanted = wanted.where(Document.status == status)
    if after is not None:
        wanted = wanted.where(key > after if order == "asc" else key < after)
    columns: list[ColumnElement[Any]] = [Document.created_at.expression, Document.id.expression]
    ordered = wanted.order_by(*(column.asc() if order == "asc" else column.desc() for column in columns))
    rows = list(session.scalars(ordered.limit(limit + 1)))
    more = rows[limit - 1] if len(rows) > limit else None
    return _complete(session, tenant_id, rows[:limit]), (more.created_at, more.id) if more else None


def same_content(session: Session, tenant_id: str, sha256: str) -> str | None:
    """The id of the tenant's live document with these bytes."""
    same = select(Document.id).where(Document.tenant_id == tenant_id, Document.content_sha256 == sha256, Document.deleted_at.is_(None))
    return session.scalars(same).one_or_none()


def add(session: Session, new: NewDocument) -> bool:
    """Insert a document with its first revision; false if the tenant has a live one with the same bytes, and then nothing is changed."""
    shown = {"title": new.title, "external_id": new.external_id, "filename": new.filename, "meta": new.meta}
    plan = {"train": new.train, "preset": new.preset, "status": DocumentStatus.INGESTING, "content_sha256": new.sha256}
    owner = {"tenant_id": new.tenant_id, "revision_id": new.revision_id}
    try:
        with session.begin_nested():
            times = {"created_at": db_now(), "updated_at": db_now()}
            session.execute(insert(Document).values(id=new.document_id, row_version=1, **owner, **shown, **plan, **times))
    except IntegrityError:
        return False
    content = {"sha256": new.sha256, "size": new.size, "blob": new.blob, "number": 1, "created_at": db_now()}
    session.execute(insert(Revision).values(id=new.revision_id, tenant_id=new.tenant_id, document_id=new.document_id, **content))
    return True


def passages_in(session: Session, tenant_id: str, revision_id: str) -> int:
    mine = select(func.count()).select_from(Passage).where(Passage.tenant_id == tenant_id, Passage.revision_id == revision_id)
    return session.scalar(mine) or 0


def newest_job(session: Session, tenant_id: str, document_id: str) -> Job | None:
    mine = select(Job).where(Job.tenant_id == tenant_id, Job.document_id == document_id)
    return session.scalars(mine.order_by(Job.created_at.desc(), Job.id.desc()).limit(1)).one_or_none()


def mean_seconds(session: Session, tenant_id: str, kind: JobKind) -> float | None:
    """How long the tenant's last jobs of this kind took from being queued to success; None without any."""
    ended = select((Job.finished_at - Job.created_at).label("seconds")).where(
        Job.tenant_id == tenant_id, Job.kind == kind, Job.state == JobState.SUCCEEDED
    )
    last = ended.order_by(Job.finished_at.desc()).limit(_HISTORY).subquery()
    mean = session.scalar(select(func.avg(last.c.seconds)))
    return None if mean is None else float(mean)


def _complete(session: Session, tenant_id: str, documents: Sequence[Document]) -> list[Found]:
    ids = [document.id for document in documents]
    current = select(Revision).where(Revision.tenant_id == tenant_id, Revision.id.in_([document.revision_id for document in documents]))
    revisions = {revision.id: revision for revision in session.scalars(current)}
    active = select(Module).where(Module.tenant_id == tenant_id, Module.id.in_([document.module_id for document in documents]))
    modules = {module.id: module for module in session.scalars(active)}
    started = select(Job).where(Job.tenant_id == tenant_id, Job.document_id.in_(ids)).order_by(Job.created_at, Job.id)
    jobs = {job.document_id: job for job in session.scalars(started)}
    return [
        Found(
            document=document,
            revision=revisions[document.revision_id],
            module=modules.get(document.module_id or ""),
            job=jobs.get(document.id),
        )
        for document in documents
    ]
