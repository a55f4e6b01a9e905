"""`/api-keys`."""

from __future__ import annotations

from fastapi import APIRouter

from server.api_keys import service
from server.api_keys.schemas import ApiKeyList, CreatedApiKey, NewApiKey, TenantId
from server.errors import ApiKeyNotFound
from server.parts import PartsOf
from server.problems import documented
from server.schemas import Id
from server.security import Admin
from server.transactions import reading, writing

router = APIRouter(tags=["api keys"])


@router.post("/api-keys", operation_id="create_api_key", status_code=201, responses=documented())
async def create_api_key(wanted: NewApiKey, parts: PartsOf, caller: Admin) -> CreatedApiKey:
    """Make a key. Its text is in this answer and nowhere else."""
    return await writing(parts.database, service.create, parts.keys, caller, wanted)


@router.get("/api-keys", operation_id="list_api_keys", responses=documented())
async def list_api_keys(parts: PartsOf, caller: Admin, tenant: TenantId | None = None) -> ApiKeyList:
    """The tenant's keys that are not revoked, newest first."""
    return ApiKeyList(items=await reading(parts.database, service.listed, caller, tenant))


@router.delete("/api-keys/{key_id}", operation_id="revoke_api_key", status_code=204, responses=documented(ApiKeyNotFound))
async def revoke_api_key(key_id: Id, parts: PartsOf, caller: Admin) -> None:
    """Revoke a key at once."""
    await writing(parts.database, service.revoke, caller, key_id)
