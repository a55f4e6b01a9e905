"""`/modules/residency`."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from server.errors import ObjectStoreUnavailable, Starting
from server.parts import PartsOf
from server.problems import documented
from server.residency import service
from server.residency.schemas import ResidencyPage
from server.schemas import Id
from server.security import Admin

router = APIRouter(tags=["modules"])


@router.get("/modules/residency", operation_id="list_module_residency", responses=documented(Starting, ObjectStoreUnavailable))
async def list_module_residency(
    parts: PartsOf, caller: Admin, after: Annotated[Id | None, Query()] = None, limit: Annotated[int, Query(ge=1, le=1000)] = 100
) -> ResidencyPage:
    """Your tenant's modules, each with the fastest tier that holds it now: a slot on the device, memory, the disk, or the
    object store."""
    return await service.page(parts, caller.tenant, after=after, limit=limit)
