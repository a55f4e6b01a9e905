"""`/health`: without a key, for whatever watches over the process."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from server.health.schemas import Liveness, Readiness
from server.health.service import Doctor
from server.parts import PartsOf

router = APIRouter(prefix="/health", tags=["health"])


@router.get("/live", operation_id="live")
async def live() -> Liveness:
    """The process answers."""
    return Liveness()


@router.get("/ready", operation_id="ready", responses={503: {"model": Readiness, "description": "It cannot serve (yet); `parts` says why."}})
async def ready(request: Request, response: Response, parts: PartsOf) -> Readiness:
    """Whether database, index and engine work, each put to a small test. The broker is shown and not required."""
    doctor: Doctor = request.app.state.doctor
    found = await doctor.readiness(parts)
    if found.status != "ready":
        response.status_code = 503
        response.headers["Retry-After"] = "2"
    return found
