"""What the health checks say."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict

from server.schemas import Value


class Liveness(Value):
    model_config = ConfigDict(json_schema_extra={"example": {"status": "alive"}})

    status: Literal["alive"] = "alive"


class PartHealth(Value):
    """A part that is not `required` does not keep the server from being ready: without a broker training starts later."""

    ok: bool
    required: bool = True
    code: str | None = None
    detail: str | None = None


class Readiness(Value):
    """Every required part works. Where one does not, the answer is a problem document with that part's `code`, `starting` while the base
    model is still being prepared or loaded, and with these `parts`."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "status": "ready",
                "parts": {
                    "database": {"ok": True, "required": True},
                    "index": {"ok": True, "required": True},
                    "engine": {"ok": True, "required": True},
                    "broker": {"ok": False, "required": False, "code": "unavailable", "detail": "it does not answer"},
                },
            }
        }
    )

    status: Literal["ready"] = "ready"
    parts: dict[str, PartHealth]
