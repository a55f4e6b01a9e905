"""Which of a tenant's modules are on which tier: its rows decide what is shown, the engine where that is held."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from server.db.tables import ModuleState
from server.engine.request import Tier
from server.parts import Parts
from server.residency import repository
from server.residency.repository import OwnedModule
from server.residency.schemas import ModuleResidency, ResidencyPage
from server.transactions import reading


async def page(parts: Parts, tenant_id: str, *, after: str | None, limit: int) -> ResidencyPage:
    """Raises Starting while there is no engine, ObjectStoreUnavailable."""
    engine = parts.models.get().engine
    rows = await reading(parts.database, repository.page, tenant_id, after=after, limit=limit + 1)
    shown, held = rows[:limit], engine.residency()
    tiers = await asyncio.to_thread(_tiers, parts, tenant_id, shown, held)
    items = [ModuleResidency(**_members(row), tier=tier) for row, tier in zip(shown, tiers, strict=True)]
    return ResidencyPage(items=items, next=shown[-1].id if len(rows) > limit else None)


def _tiers(parts: Parts, tenant_id: str, rows: Sequence[OwnedModule], held: Mapping[Path, Tier]) -> list[Tier | None]:
    """Raises ObjectStoreUnavailable where only the object store could say."""
    places = [parts.modules.path(tenant_id, row.document_id, row.digest) for row in rows]
    tiers = [held.get(place) or (Tier.DISK if place.is_dir() else None) for place in places]
    served = [row.state == ModuleState.PUBLISHED for row in rows]
    if not any(tier is None and published for tier, published in zip(tiers, served, strict=True)):
        return tiers
    below = parts.modules.below(tenant_id)
    looked_for = zip(tiers, places, served, strict=True)
    return [Tier.STORE if tier is None and published and place in below else tier for tier, place, published in looked_for]


def _members(row: OwnedModule) -> dict[str, Any]:
    return {name: value for name, value in vars(row).items() if name != "id"}
