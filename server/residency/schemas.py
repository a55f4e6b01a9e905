"""Where modules are held, as the API shows it."""

from __future__ import annotations

from pydantic import ConfigDict

from server.db.tables import ModuleState
from server.engine.request import Tier
from server.schemas import Value


class ModuleResidency(Value):
    """`active`: it answers for its document. `tier`: the fastest one that holds it in the process that was asked; null for a module in
    quarantine, or whose files are gone."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "document_id": "doc_3f2a1b0c9d8e7f6a5b4c0f8b7a6c5d4e",
                "version": 2,
                "digest": "4be9106c3d6a2f0f8f1b0b7d2c5e9a7718c4d3b2a1908f7e6d5c4b3a29180706",
                "state": "published",
                "active": True,
                "tier": "device",
            }
        }
    )

    document_id: str
    version: int
    digest: str
    state: ModuleState
    active: bool
    tier: Tier | None


class ResidencyPage(Value):
    """`next` is the value of `after` for the page that follows; null on the last one."""

    items: list[ModuleResidency]
    next: str | None
