"""Rows of published knowledge modules, and the pointer from a document to its active one. Knows nothing of the artefacts' files.

Versions never change: a new training adds one, a rollback only moves the pointer.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, insert, select, update
from sqlalchemy.orm import Session

from server.db.clock import db_now
from server.db.tables import Document, Module, ModuleState, Revision

_REFRESH = {"populate_existing": True}


@dataclass(frozen=True, kw_only=True)
class NewModule:
    """What a published artefact says of itself; the files must prove `digest` and `manifest_sha256` before they are loaded."""

    tenant_id: str
    document_id: str
    revision_id: str
    job_id: str
    digest: str
    manifest_sha256: str
    base_fingerprint: str
    wears: str | None
    scope: str
    gate: dict[str, Any]


def insert_version(session: Session, new: NewModule) -> Module:
    """Add the document's next version. The caller holds the document's lock, so that two cannot take one number."""
    newest = session.scalar(
        select(func.max(Module.version)).where(Module.tenant_id == new.tenant_id, Module.document_id == new.document_id)
    )
    values = {**vars(new), "version": (newest or 0) + 1, "state": ModuleState.PUBLISHED, "created_at": db_now()}
    row = insert(Module).values(id=f"mod_{uuid.uuid4().hex}", **values).returning(Module)
    return session.scalars(row, execution_options=_REFRESH).one()


def activate(session: Session, module: Module) -> None:
    """Point the module's document at it."""
    session.execute(
        update(Document)
        .where(Document.id == module.document_id, Document.tenant_id == module.tenant_id)
        .values(module_id=module.id, row_version=Document.row_version + 1, updated_at=db_now())
    )


def active(session: Session, tenant_id: str, document_id: str) -> Module | None:
    """The module that answers for a live document, quarantined or not; None when it has none."""
    pointed = (
        select(Module)
        .join(Document, Document.module_id == Module.id)
        .where(Module.tenant_id == tenant_id, Document.tenant_id == tenant_id)
        .where(Document.id == document_id, Document.deleted_at.is_(None))
    )
    return session.scalars(pointed).one_or_none()


def versions(session: Session, tenant_id: str, document_id: str) -> list[Module]:
    """Newest first."""
    found = select(Module).where(Module.tenant_id == tenant_id, Module.document_id == document_id)
    return list(session.scalars(found.order_by(Module.version.desc())))


def quarantine(session: Session, tenant_id: str, module_id: str, reason: str) -> bool:
    """Take a module out of service; False if it is already. The pointer stays: the document's owner is told, not quietly answered by
    something else."""
    served = update(Module).where(Module.id == module_id, Module.tenant_id == tenant_id, Module.state == ModuleState.PUBLISHED)
    moved = served.values(state=ModuleState.QUARANTINED, state_reason=reason).returning(Module.id)
    return session.scalar(moved) is not None


def in_use(session: Session, tenant_id: str, document_id: str, digest: str, manifest_sha256: str | None = None) -> bool:
    """Whether any version of the document stands on the artefact `digest`, with this manifest or any."""
    found = select(Module.id).where(Module.tenant_id == tenant_id, Module.document_id == document_id, Module.digest == digest)
    if manifest_sha256 is not None:
        found = found.where(Module.manifest_sha256 == manifest_sha256)
    return session.scalar(found.limit(1)) is not None


def in_live_use(session: Session, tenant_id: str, document_id: str, digest: str, manifest_sha256: str) -> bool:
    """Whether a version of the document, which is not deleted, stands on the artefact `digest` with this manifest."""
    live = select(Document.id).where(Document.id == document_id, Document.tenant_id == tenant_id, Document.deleted_at.is_(None))
    return session.scalar(live) is not None and in_use(session, tenant_id, document_id, digest, manifest_sha256)


def revision_number(session: Session, tenant_id: str, revision_id: str) -> int:
    return session.scalars(select(Revision.number).where(Revision.id == revision_id, Revision.tenant_id == tenant_id)).one()
