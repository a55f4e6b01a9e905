"""Who calls, and what the caller's key may do. Tenant and scopes come from the key alone, never from the request."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

import structlog
from fastapi import Depends
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from server.api_keys import repository
from server.api_keys.keys import KeyMaker, prefix_of
from server.db.session import Database
from server.errors import Forbidden, NotFound, Unauthorized
from server.parts import PartsOf
from server.transactions import reading

OPERATOR_TENANT = "default"
"""The built-in tenant. Its admin keys, and no others, manage the keys of every tenant; documents of other tenants they never see."""

_bearer = HTTPBearer(auto_error=False, scheme_name="apiKey", description="`Authorization: Bearer kms_<prefix>_<secret>`")
_NO_ROW = "0" * 64


class KeyScope(StrEnum):
    """`admin` implies all others within its tenant, and managing the tenant's keys."""

    ASK = "ask"
    DOCUMENTS_READ = "documents:read"
    DOCUMENTS_WRITE = "documents:write"
    EVALUATE = "evaluate"
    ADMIN = "admin"


@dataclass(frozen=True, kw_only=True)
class Caller:
    tenant: str
    key_id: str
    scopes: frozenset[str]

    def require(self, scope: KeyScope) -> None:
        """Raises Forbidden."""
        if not self.scopes & {scope, KeyScope.ADMIN}:
            raise Forbidden(f"this key lacks the scope {scope}; use another key or have an admin make one", scope=scope)

    @property
    def operator(self) -> bool:
        return self.tenant == OPERATOR_TENANT and KeyScope.ADMIN in self.scopes


async def authenticate(database: Database, keys: KeyMaker, text: str) -> Caller:
    """Raises Unauthorized, in the same words for whatever is wrong with the key."""
    prefix = prefix_of(text)
    row = await reading(database, repository.usable, prefix) if prefix else None
    proven = keys.proves(text, row.hash if row else _NO_ROW)  # compared without a row too, so that both take the same time
    if row is None or not proven:
        raise Unauthorized("the API key is unknown, revoked or expired")
    return Caller(tenant=row.tenant_id, key_id=row.id, scopes=frozenset(row.scopes))


async def caller(parts: PartsOf, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]) -> Caller:
    if credentials is None:
        raise Unauthorized("send an API key as `Authorization: Bearer kms_…`")
    found = await authenticate(parts.database, parts.keys, credentials.credentials)
    structlog.contextvars.bind_contextvars(tenant=found.tenant, key=found.key_id)
    return found


def _with(scope: KeyScope) -> Callable[[Caller], Awaitable[Caller]]:
    async def scoped(known: Annotated[Caller, Depends(caller)]) -> Caller:
        known.require(scope)
        return known

    return scoped


async def scraper(parts: PartsOf, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]) -> None:
    """Whether the caller may read the metrics, which are of all tenants. Raises NotFound where there are none, Unauthorized, Forbidden."""
    if parts.settings.metrics == "off":
        raise NotFound("no such path")
    if parts.settings.metrics == "key" and not (await caller(parts, credentials)).operator:
        raise Forbidden(f"metrics are for admin keys of the tenant {OPERATOR_TENANT}", scope=KeyScope.ADMIN)


Asker = Annotated[Caller, Depends(_with(KeyScope.ASK))]
Reader = Annotated[Caller, Depends(_with(KeyScope.DOCUMENTS_READ))]
Writer = Annotated[Caller, Depends(_with(KeyScope.DOCUMENTS_WRITE))]
Admin = Annotated[Caller, Depends(_with(KeyScope.ADMIN))]
