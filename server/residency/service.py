"""Which of a tenant's modules are on which tier: its rows decide what is shown, the engine where that is held."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from server.engine.request import Tier
from server.parts import Parts
from server.residency import repository
from server.residency.repository import OwnedModule
from server.residency.schemas import ModuleResidency, ResidencyPage
from server.transactions import reading


async def page(parts: Parts, tenant_id: str, *, after: str | None, limit: int) -> ResidencyPage:
    """Raises Starting while there is no engine."""
    engine = parts.models.get().engine
    rows = await reading(parts.database, repository.page, tenant_id, after=after, limit=limit + 1)
    shown, held = rows[:limit], engine.residency()
    tiers = await asyncio.to_thread(lambda: [_tier(parts, tenant_id, row, held) for row in shown])
    items = [ModuleResidency(**_members(row), tier=tier) for row, tier in zip(shown, tiers, strict=True)]
    return ResidencyPage(items=items, next=shown[-1].id if len(rows) > limit else None)


def _tier(parts: Parts, tenant_id: str, row: OwnedModule, held: Mapping[Path, Tier]) -> Tier | None:
    directory = parts.modules.path(tenant_id, row.document_id, row.digest)
    return held.get(directory) or (Tier.DISK if directory.is_dir() else None)


def _members(row: OwnedModule) -> dict[str, Any]:
    return {name: value for name, value in vars(row).items() if name != "id"}
