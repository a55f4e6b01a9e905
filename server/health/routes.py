"""`/health`: without a key, for whatever watches over the process."""

from __future__ import annotations

from fastapi import APIRouter, Request

from server.errors import (
    BaseModelNotFound,
    BaseModelUnusable,
    DatabaseUnavailable,
    DeviceUnavailable,
    EmbedderNotFound,
    EngineStopped,
    IndexMismatch,
    IndexUnavailable,
    Starting,
    Unavailable,
)
from server.health.schemas import Liveness, Readiness
from server.health.service import Doctor
from server.parts import PartsOf
from server.problems import documented

router = APIRouter(prefix="/health", tags=["health"])

_UNREADY = (
    Starting,
    DatabaseUnavailable,
    IndexUnavailable,
    IndexMismatch,
    EngineStopped,
    BaseModelNotFound,
    BaseModelUnusable,
    EmbedderNotFound,
    DeviceUnavailable,
    Unavailable,
)


@router.get("/live", operation_id="live")
async def live() -> Liveness:
    """The process answers."""
    return Liveness()


@router.get("/ready", operation_id="ready", responses=documented(*_UNREADY, everywhere=()))
async def ready(request: Request, parts: PartsOf) -> Readiness:
    """Whether database, index and engine work, each put to a small test. The broker is shown and not required."""
    doctor: Doctor = request.app.state.doctor
    return await doctor.readiness(parts)
