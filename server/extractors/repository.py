"""SQL of extractors as the API lists and shows them, and of the documents that one is to learn from."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from server.db import extractors, material
from server.db.extractors import SYSTEM_OWNER
from server.db.tables import Document, Extractor, Job, JobKind, JobState, Revision
from server.errors import ExtractorNotFound


@dataclass(frozen=True, kw_only=True)
class Found:
    """An extractor as one tenant sees it: `revisions` are those of its own documents that it learned from."""

    extractor: Extractor
    revisions: dict[str, str]
    worn_by: int


@dataclass(frozen=True, kw_only=True)
class Material:
    """A live document; `indexed`: its current revision can be learned from."""

    revision_id: str
    indexed: bool


def find(session: Session, tenant_id: str, extractor_id: str) -> Found:
    """One of the tenant's own, or of the system's. Raises ExtractorNotFound."""
    wanted = _visible(tenant_id).where(Extractor.id == extractor_id)
    extractor = session.scalars(wanted, execution_options={"populate_existing": True}).one_or_none()
    if extractor is None:
        raise ExtractorNotFound("no such extractor")
    return _seen_by(session, tenant_id, extractor)


def listed(session: Session, tenant_id: str) -> list[Found]:
    """Newest first."""
    rows = session.scalars(_visible(tenant_id).order_by(Extractor.created_at.desc(), Extractor.id.desc()))
    return [_seen_by(session, tenant_id, extractor) for extractor in list(rows)]


def jobs_under_way(session: Session, tenant_id: str) -> list[Job]:
    """Newest first."""
    mine = select(Job).where(Job.tenant_id == tenant_id, Job.kind == JobKind.EXTRACTOR)
    going = mine.where(Job.state.in_((JobState.QUEUED, JobState.RUNNING)))
    return list(session.scalars(going.order_by(Job.created_at.desc(), Job.id.desc())))


def lock_material(session: Session, tenant_id: str, document_ids: Collection[str]) -> dict[str, Material]:
    """Those of these documents that are the tenant's and live, held until the transaction ends: none is deleted before its questions
    are there to be deleted with it."""
    held = (
        select(Document.id, Document.revision_id, Revision.indexed_at)
        .join(Revision, Revision.id == Document.revision_id)
        .where(Document.tenant_id == tenant_id, Revision.tenant_id == tenant_id)
        .where(Document.id.in_(document_ids), Document.deleted_at.is_(None))
        .order_by(Document.id)
        .with_for_update(key_share=True, of=Document)
    )
    return {row.id: Material(revision_id=row.revision_id, indexed=row.indexed_at is not None) for row in session.execute(held)}


def _visible(tenant_id: str) -> Select[Extractor]:
    return select(Extractor).where(Extractor.owner.in_((tenant_id, SYSTEM_OWNER)), Extractor.deleted_at.is_(None))


def _seen_by(session: Session, tenant_id: str, extractor: Extractor) -> Found:
    revisions = {} if extractor.job_id is None else material.revisions(session, tenant_id, extractor.job_id)
    return Found(extractor=extractor, revisions=revisions, worn_by=extractors.worn_by(session, tenant_id, extractor.lora_digest))
