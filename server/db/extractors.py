"""Rows of published knowledge extractors: which one serves a tenant, and adding and removing them. Switching is `activation.py`'s.

Knows nothing of the artefacts' files.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.orm import Session

from server.db.clock import db_now
from server.db.tables import Document, Extractor, ExtractorDocument, Module

SYSTEM_OWNER: Final = "system"
_REFRESH: Final = {"populate_existing": True}


@dataclass(frozen=True, kw_only=True)
class NewExtractor:
    """What a published artefact says of itself; the files must prove the digests and `manifest_sha256` before they are loaded."""

    owner: str
    name: str | None
    job_id: str | None
    """None for one that shipped with the base model."""
    lora_digest: str
    composition_digest: str
    manifest_sha256: str
    base_fingerprint: str
    scope: str
    gate: dict[str, Any]


def active(session: Session, tenant_id: str) -> Extractor | None:
    """The tenant's own active extractor, else the system's, else none."""
    found = session.scalars(
        select(Extractor).where(Extractor.active, Extractor.owner.in_((tenant_id, SYSTEM_OWNER))), execution_options=_REFRESH
    )
    return min(found, key=lambda extractor: extractor.owner != tenant_id, default=None)


def insert_new(session: Session, new: NewExtractor) -> Extractor:
    """Add an extractor that is not active."""
    row = insert(Extractor).values(id=f"ext_{uuid.uuid4().hex}", **vars(new), active=False, created_at=db_now())
    return session.scalars(row.returning(Extractor), execution_options=_REFRESH).one()


def lock(session: Session, owner: str) -> list[Extractor]:
    """All extractors of an owner, oldest first, held until the transaction ends: none is added to those that serve or removed meanwhile."""
    mine = select(Extractor).where(Extractor.owner == owner, Extractor.deleted_at.is_(None))
    return list(session.scalars(mine.order_by(Extractor.created_at, Extractor.id).with_for_update(), execution_options=_REFRESH))


def tombstone(session: Session, extractor: Extractor) -> Extractor:
    """Take an extractor, not active and held by the transaction, out of service for good; its files are the caller's to remove."""
    mine = update(Extractor).where(Extractor.id == extractor.id, Extractor.owner == extractor.owner)
    return session.scalars(mine.values(deleted_at=db_now()).returning(Extractor), execution_options=_REFRESH).one()


def remove(session: Session, extractor: Extractor) -> None:
    """Forget an extractor, and what it was trained on."""
    session.execute(delete(Extractor).where(Extractor.id == extractor.id, Extractor.owner == extractor.owner))
    # tenant-free: the extractor's owner may be the system, and these go with it whoever's they are
    session.execute(delete(ExtractorDocument).where(ExtractorDocument.job_id == extractor.job_id))


def stays_servable(session: Session, tenant_id: str, lora: str) -> bool:
    """Whether a tenant's module that wears this lora can be served with it, until the transaction ends."""
    over = select(Extractor.id).where(Extractor.lora_digest == lora, Extractor.owner.in_((tenant_id, SYSTEM_OWNER)))
    return session.scalars(over.where(Extractor.deleted_at.is_(None)).with_for_update(read=True)).first() is not None


def in_use(session: Session, owner: str, composition: str, manifest_sha256: str | None = None) -> bool:
    """Whether an extractor of the owner that is not deleted stands on the artefact `composition`, with this manifest or any."""
    found = select(Extractor.id).where(
        Extractor.owner == owner, Extractor.composition_digest == composition, Extractor.deleted_at.is_(None)
    )
    if manifest_sha256 is not None:
        found = found.where(Extractor.manifest_sha256 == manifest_sha256)
    return session.scalar(found.limit(1)) is not None


def being_deleted(session: Session, owner: str, composition: str) -> bool:
    """Whether the artefact `composition` of the owner has a deletion that is not finished."""
    doomed = (Extractor.owner == owner, Extractor.composition_digest == composition, Extractor.deleted_at.is_not(None))
    return session.scalar(select(Extractor.id).where(*doomed).limit(1)) is not None


def worn_by(session: Session, tenant_id: str, lora: str) -> int:
    """How many of the tenant's documents are answered by a module that wears this lora."""
    answering = (
        select(func.count())
        .select_from(Module)
        .join(Document, Document.module_id == Module.id)
        .where(Module.tenant_id == tenant_id, Document.tenant_id == tenant_id)
        .where(Module.wears == lora, Document.deleted_at.is_(None))
    )
    return session.scalar(answering) or 0


def worn_by_anyone(session: Session, lora: str) -> int:
    """Like `worn_by`, over all tenants but those that have an extractor over this lora themselves."""
    own = select(Extractor.id).where(Extractor.owner == Module.tenant_id, Extractor.lora_digest == lora, Extractor.deleted_at.is_(None))
    # tenant-free: an extractor of the system's serves modules of every tenant; they are counted, not shown
    answering = select(func.count()).select_from(Module).join(Document, Document.module_id == Module.id)
    worn = (Module.wears == lora, Document.deleted_at.is_(None), Document.tenant_id == Module.tenant_id, ~own.exists())
    return session.scalar(answering.where(*worn)) or 0
