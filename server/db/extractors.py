"""Which knowledge extractor serves a tenant."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from server.db.tables import Extractor

SYSTEM_OWNER = "system"


def active(session: Session, tenant_id: str) -> Extractor | None:
    """The tenant's own active extractor, else the system's, else none."""
    found = session.scalars(select(Extractor).where(Extractor.active, Extractor.owner.in_((tenant_id, SYSTEM_OWNER))))
    return min(found, key=lambda extractor: extractor.owner != tenant_id, default=None)
