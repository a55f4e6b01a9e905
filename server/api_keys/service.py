"""The rules of API keys.

An admin key manages the keys of its own tenant. The operator, which is an admin key of the built-in tenant `default`, manages those of
every tenant and opens tenants by making their first key; documents of other tenants it never sees.
"""

from __future__ import annotations

from sqlalchemy.orm import Session

from server import audit
from server.api_keys import repository
from server.api_keys.keys import KeyMaker
from server.api_keys.schemas import ApiKey, CreatedApiKey, NewApiKey
from server.db import tables
from server.db.extractors import SYSTEM_OWNER
from server.errors import ApiKeyNotFound, Forbidden, InvalidInput
from server.security import Caller


def create(session: Session, keys: KeyMaker, caller: Caller, wanted: NewApiKey) -> CreatedApiKey:
    """Raises Forbidden for another's tenant, InvalidInput for a name that no tenant may have."""
    tenant_id = tenant_of(caller, wanted.tenant)
    if tenant_id == SYSTEM_OWNER:
        raise InvalidInput(f"no tenant is called {SYSTEM_OWNER}: that name owns what all tenants share")
    repository.ensure_tenant(session, tenant_id)
    new = keys.new()
    scopes = sorted(set(wanted.scopes))
    row = repository.add(
        session,
        tenant_id=tenant_id,
        name=wanted.name,
        prefix=new.prefix,
        key_hash=new.hash,
        scopes=scopes,
        expires_at=wanted.expires_at,
    )
    audit.record(session, caller.tenant, "create_api_key", by=caller.key_id, key=row.id, tenant=tenant_id, scopes=scopes)
    return CreatedApiKey(**shown(row).model_dump(), key=new.text)


def listed(session: Session, caller: Caller, tenant: str | None) -> list[ApiKey]:
    """Raises Forbidden for another's tenant."""
    return [shown(row) for row in repository.listed(session, tenant_of(caller, tenant))]


def revoke(session: Session, caller: Caller, key_id: str) -> None:
    """Raises ApiKeyNotFound, also for a key that the caller may not see."""
    if not repository.revoke(session, key_id, None if caller.operator else caller.tenant):
        raise ApiKeyNotFound("no such API key")
    audit.record(session, caller.tenant, "revoke_api_key", by=caller.key_id, key=key_id)


def tenant_of(caller: Caller, named: str | None) -> str:
    """The tenant that an admin acts on."""
    if named is None or named == caller.tenant:
        return caller.tenant
    if not caller.operator:
        raise Forbidden("only an admin key of the tenant `default` manages other tenants' keys")
    return named


def shown(row: tables.ApiKey) -> ApiKey:
    names = ("id", "name", "prefix", "scopes", "created_at", "expires_at")
    return ApiKey(tenant=row.tenant_id, **{name: getattr(row, name) for name in names})
