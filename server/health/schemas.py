"""What the health checks say."""

from __future__ import annotations

from typing import Any, Literal

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
    progress: dict[str, Any] | None = None


class Readiness(Value):
    """`starting`: the base model is still being prepared or loaded. `unready`: a required part does not work."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "status": "starting",
                "parts": {
                    "database": {"ok": True, "required": True},
                    "index": {"ok": False, "required": True, "code": "starting", "detail": "the base model is still being loaded"},
                    "engine": {"ok": False, "required": True, "code": "starting", "progress": {"stage": "converting", "done": 40, "total": 272}},
                    "broker": {"ok": True, "required": False},
                },
            }
        }
    )

    status: Literal["ready", "starting", "unready"]
    parts: dict[str, PartHealth]
