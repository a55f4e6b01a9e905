"""API keys as the API takes and gives them."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field

from server.schemas import NO_NUL, Body, Value
from server.security import KeyScope

TenantId = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]


class NewApiKey(Body):
    """`expires_at` in seconds since the epoch; a key without one is valid until it is revoked. `tenant` is the caller's own where it is
    missing; only the operator may name another."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"name": "intranet search", "scopes": ["ask", "documents:read"], "expires_at": 1826000000.0}}
    )

    name: str = Field(min_length=1, max_length=200, pattern=NO_NUL)
    scopes: list[KeyScope] = Field(min_length=1, max_length=len(KeyScope))
    expires_at: float | None = Field(default=None, gt=0, le=1e11)
    tenant: TenantId | None = None


class ApiKey(Value):
    """`prefix` is the public part of the key."""

    id: str
    tenant: str
    name: str
    prefix: str
    scopes: list[KeyScope]
    created_at: float
    expires_at: float | None


class CreatedApiKey(ApiKey):
    """`key` is shown this once and stored nowhere."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "id": "key_7c6d5e4f3a2b1c0d9e8f7a6b5c4d3e2f",
                "tenant": "acme",
                "name": "intranet search",
                "prefix": "a1b2c3d4e5f6",
                "scopes": ["ask", "documents:read"],
                "created_at": 1794500000.0,
                "expires_at": 1826000000.0,
                "key": "kms_a1b2c3d4e5f6_…",
            }
        }
    )

    key: str


class ApiKeyList(Value):
    items: list[ApiKey]
