"""Whether every part really works: each is made to do a little of what it is for."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable
from typing import Final

import structlog
from kombu import Connection
from sqlalchemy import text

from server.engine.request import EngineRequest
from server.errors import KmserveError, Starting, TooManyRequests, Unavailable
from server.health.schemas import PartHealth, Readiness
from server.parts import Parts
from server.settings import Settings

log = structlog.get_logger(__name__)

_PATIENCE_SECONDS: Final = 5.0
_KEPT_SECONDS: Final = 2.0
_TENANT: Final = "health"
"""Of no document: its searches find nothing, its prompts share no cache with anybody's."""


class Doctor:
    """Checks at most every two seconds, however often it is asked: the question needs no key."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._last: Readiness | None = None
        self._at = 0.0

    async def readiness(self, parts: Parts) -> Readiness:
        async with self._lock:
            if self._last is None or time.monotonic() - self._at > _KEPT_SECONDS:
                self._last = await examine(parts)
                self._at = time.monotonic()
            return self._last


async def examine(parts: Parts) -> Readiness:
    names = ("database", "index", "engine", "broker")
    checks = (_database(parts), _index(parts), _engine(parts), _broker(parts.settings))
    healths = dict(zip(names, await asyncio.gather(*map(_health, names, checks)), strict=True))
    healths["broker"] = healths["broker"].model_copy(update={"required": False})
    if parts.models.peek() is None:
        healths["engine"] = healths["engine"].model_copy(update={"progress": parts.models.stage})
    wrong = [health for health in healths.values() if health.required and not health.ok]
    starting = wrong and all(health.code == Starting.code for health in wrong)
    return Readiness(status="starting" if starting else "unready" if wrong else "ready", parts=healths)


async def _health(name: str, check: Awaitable[None]) -> PartHealth:
    try:
        async with asyncio.timeout(_PATIENCE_SECONDS):
            await check
    except KmserveError as error:
        return PartHealth(ok=False, code=error.code, detail=error.detail)
    except Exception as error:  # whatever a driver raises, the part does not work
        log.warning("a part is not healthy", part=name, exc_info=error)
        return PartHealth(ok=False, code=Unavailable.code, detail="it does not answer; the server's log says why")
    return PartHealth(ok=True)


async def _database(parts: Parts) -> None:
    async with parts.database.read() as session:
        await session.execute(text("SELECT 1"))


async def _index(parts: Parts) -> None:
    await parts.models.get().index.count(_TENANT, _TENANT)


async def _engine(parts: Parts) -> None:
    """One token through the model. An engine that is busy is well."""
    models = parts.models.get()
    prompt = models.prompter.fit("Ready?", reserve=1).prompt
    before = models.engine.stats()
    try:
        async with asyncio.timeout(_PATIENCE_SECONDS * 0.9):
            await models.engine.score(EngineRequest(request_id=f"health-{uuid.uuid4().hex}", tenant=_TENANT, prompt=prompt), ["."])
    except TooManyRequests:
        return
    except TimeoutError:
        if models.engine.stats() == before:
            raise Unavailable("the engine makes no progress") from None


async def _broker(settings: Settings) -> None:
    if not settings.celery_url.startswith("filesystem:"):
        await asyncio.to_thread(_connect, settings.celery_url)


def _connect(url: str) -> None:
    with Connection(url, connect_timeout=2) as connection:
        connection.ensure_connection(max_retries=1, interval_start=0, timeout=3)
