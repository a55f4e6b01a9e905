"""SQL of tenants and API keys."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from sqlalchemy import Select, insert, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from server.db.clock import db_now
from server.db.tables import ApiKey, Tenant


def ensure_tenant(session: Session, tenant_id: str) -> None:
    if session.scalar(select(Tenant.id).where(Tenant.id == tenant_id)) is not None:
        return
    try:
        with session.begin_nested():
            session.execute(insert(Tenant).values(id=tenant_id, created_at=db_now()))
    except IntegrityError:  # another process made it meanwhile
        return


def add(
    session: Session, *, tenant_id: str, name: str, prefix: str, key_hash: str, scopes: Sequence[str], expires_at: float | None = None
) -> ApiKey:
    row = {"id": f"key_{uuid.uuid4().hex}", "tenant_id": tenant_id, "name": name, "prefix": prefix, "hash": key_hash}
    new = insert(ApiKey).values(**row, scopes=list(scopes), created_at=db_now(), expires_at=expires_at)
    return session.scalars(new.returning(ApiKey)).one()


def usable(session: Session, prefix: str) -> ApiKey | None:
    """The key of this prefix unless it is revoked or expired, by the database's clock."""
    return session.scalars(_usable().where(ApiKey.prefix == prefix)).one_or_none()


def usable_of(session: Session, tenant_id: str) -> list[ApiKey]:
    """The tenant's keys that are neither revoked nor expired."""
    return list(session.scalars(_usable().where(ApiKey.tenant_id == tenant_id)))


def listed(session: Session, tenant_id: str) -> list[ApiKey]:
    """Newest first, without revoked ones; expired ones are shown."""
    mine = select(ApiKey).where(ApiKey.tenant_id == tenant_id, ApiKey.revoked_at.is_(None))
    return list(session.scalars(mine.order_by(ApiKey.created_at.desc(), ApiKey.id)))


def revoke(session: Session, key_id: str, tenant_id: str | None) -> bool:
    """Whether there was such a key, not yet revoked; `tenant_id` None looks in every tenant."""
    found = update(ApiKey).where(ApiKey.id == key_id, ApiKey.revoked_at.is_(None))
    if tenant_id is not None:
        found = found.where(ApiKey.tenant_id == tenant_id)
    return session.scalar(found.values(revoked_at=db_now()).returning(ApiKey.id)) is not None


def _usable() -> Select[ApiKey]:
    in_time = or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > db_now())
    return select(ApiKey).where(ApiKey.revoked_at.is_(None), in_time)
