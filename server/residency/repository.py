"""SQL of the modules that a tenant has."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from server.db.tables import Document, Module, ModuleState


@dataclass(frozen=True, kw_only=True)
class OwnedModule:
    id: str
    document_id: str
    version: int
    digest: str
    state: ModuleState
    active: bool


def page(session: Session, tenant_id: str, *, after: str | None, limit: int) -> list[OwnedModule]:
    """At most `limit` modules of live documents, in the order of their ids, behind the id `after`."""
    mine = (
        select(Module, Document.module_id)
        .join(Document, Document.id == Module.document_id)
        .where(Module.tenant_id == tenant_id, Document.tenant_id == tenant_id, Document.deleted_at.is_(None))
    )
    behind = mine if after is None else mine.where(Module.id > after)
    return [_owned(module, active) for module, active in session.execute(behind.order_by(Module.id).limit(limit))]


def _owned(row: Module, active: str | None) -> OwnedModule:
    names = ("id", "document_id", "version", "digest")
    return OwnedModule(**{name: getattr(row, name) for name in names}, state=ModuleState(row.state), active=row.id == active)
