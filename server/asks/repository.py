"""SQL of questions: the documents they are about, their modules, the extractors that may be worn, the passages that were found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from server.asks.plan import ModuleVersion, Source
from server.db import extractors
from server.db.clock import db_now
from server.db.extractors import SYSTEM_OWNER
from server.db.tables import Document, Extractor, Job, Module, ModuleState, Passage, Revision
from server.errors import DocumentNotFound


@dataclass(frozen=True, kw_only=True)
class FoundPassage:
    """A passage of a live document; `score` is its similarity to the question."""

    id: str
    document_id: str
    revision_id: str
    filename: str | None
    text: str
    page: int | None
    char_start: int
    char_end: int
    score: float


@dataclass(frozen=True, kw_only=True)
class Extractors:
    """The extractor active for a tenant, and all that it may be served with, oldest first."""

    active: Extractor | None
    versions: tuple[Extractor, ...]


def sources(session: Session, tenant_id: str, ids: Sequence[str]) -> list[Source]:
    """In the order of `ids`. Raises DocumentNotFound if one of them is absent, foreign or deleted."""
    wanted = (
        select(Document, Revision, Module)
        .join(Revision, Revision.id == Document.revision_id)
        .outerjoin(Module, (Module.id == Document.module_id) & (Module.tenant_id == tenant_id))
        .where(Document.tenant_id == tenant_id, Revision.tenant_id == tenant_id)
        .where(Document.id.in_(ids), Document.deleted_at.is_(None))
    )
    jobs = {job.document_id: job for job in session.scalars(_jobs(tenant_id, ids))}
    found = {row.Document.id: _source(row, jobs.get(row.Document.id)) for row in session.execute(wanted)}
    if len(found) < len(ids):
        raise DocumentNotFound("no such document")
    return [found[document_id] for document_id in ids]


def passages(session: Session, tenant_id: str, scores: dict[str, float], revision_ids: Sequence[str] | None) -> list[FoundPassage]:
    """The passages of these ids that still belong to a live document: of these revisions, or of the current ones if None."""
    wanted = (
        select(Passage, Document.filename)
        .join(Document, Document.id == Passage.document_id)
        .where(Passage.tenant_id == tenant_id, Document.tenant_id == tenant_id)
        .where(Passage.id.in_(scores), Document.deleted_at.is_(None))
    )
    within = Passage.revision_id == Document.revision_id if revision_ids is None else Passage.revision_id.in_(revision_ids)
    rows = session.execute(wanted.where(within))
    return [_passage(passage, filename, scores[passage.id]) for passage, filename in rows]


def touch(session: Session, tenant_id: str, document_id: str) -> None:
    """Something that is shown of a document has changed."""
    mine = update(Document).where(Document.id == document_id, Document.tenant_id == tenant_id)
    session.execute(mine.values(row_version=Document.row_version + 1, updated_at=db_now()))


def worn(session: Session, tenant_id: str) -> Extractors:
    mine = select(Extractor).where(Extractor.owner.in_((tenant_id, SYSTEM_OWNER)), Extractor.deleted_at.is_(None))
    versions = tuple(session.scalars(mine.order_by(Extractor.created_at, Extractor.id)))
    return Extractors(active=extractors.active(session, tenant_id), versions=versions)


def _jobs(tenant_id: str, ids: Sequence[str]) -> Any:
    return select(Job).where(Job.tenant_id == tenant_id, Job.document_id.in_(ids)).order_by(Job.created_at, Job.id)


def _source(row: Any, job: Job | None) -> Source:
    return Source(
        document_id=row.Document.id,
        revision_id=row.Revision.id,
        blob=row.Revision.blob,
        indexed=row.Revision.indexed_at is not None,
        tokens=row.Revision.tokens or 0,
        module=None if row.Module is None else _version(row.Module),
        job_id=None if job is None else job.id,
        job_state=None if job is None else job.state,
    )


def _version(row: Module) -> ModuleVersion:
    names = ("id", "document_id", "revision_id", "version", "digest", "manifest_sha256", "base_fingerprint", "wears", "scope", "gate")
    return ModuleVersion(**{name: getattr(row, name) for name in names}, state=ModuleState(row.state))


def _passage(row: Passage, filename: str | None, score: float) -> FoundPassage:
    names = ("id", "document_id", "revision_id", "text", "page", "char_start", "char_end")
    return FoundPassage(**{name: getattr(row, name) for name in names}, filename=filename, score=score)
