"""`/metrics`: for Prometheus and the like."""

from __future__ import annotations

from typing import Any, Final

from fastapi import APIRouter, Depends, Request
from fastapi.responses import PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from server.errors import NotFound
from server.metrics.service import Meter
from server.parts import PartsOf
from server.problems import documented
from server.security import scraper

router = APIRouter(tags=["metrics"])

_EXAMPLE: Final = 'kmserve_tier_hits_total{tier="device"} 412.0\nkmserve_tier_hits_total{tier="host"} 37.0\n'
_TEXT: Final[dict[int | str, dict[str, Any]]] = {200: {"content": {"text/plain": {"example": _EXAMPLE}}}}


@router.get(
    "/metrics",
    operation_id="metrics",
    dependencies=[Depends(scraper)],
    response_class=PlainTextResponse,
    responses={**_TEXT, **documented(NotFound)},
)
async def metrics(request: Request, parts: PartsOf) -> Response:
    """Counts of requests, engine and module tiers, of all tenants together, in Prometheus' text format. KMSERVE_METRICS says who may read
    them."""
    meter: Meter = request.app.state.meter
    return Response(await meter.exposition(parts), media_type=CONTENT_TYPE_LATEST)
