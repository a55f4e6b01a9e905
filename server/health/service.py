"""Whether every part really works: each is made to do a little of what it is for."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable
from typing import Final

from kombu import Connection
from sqlalchemy import text

from server.engine.request import EngineRequest
from server.errors import KmserveError, Starting, TooManyRequests, Unavailable
from server.health.schemas import PartHealth, Readiness
from server.parts import Parts
from server.problems import known
from server.settings import Settings

logger = logging.getLogger(__name__)

_PATIENCE_SECONDS: Final = 5.0
_KEPT_SECONDS: Final = 2.0
_TENANT: Final = "health"
"""Of no document: its searches find nothing, its prompts share no cache with anybody's."""


Examined = tuple[dict[str, PartHealth], KmserveError | None]
"""Every part's health, and why the server cannot serve."""


class Doctor:
    """Examines at most every two seconds, however often it is asked: the question needs no key."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._last: Examined | None = None
        self._at = 0.0

    async def readiness(self, parts: Parts) -> Readiness:
        """Raises the error of a required part that does not work."""
        async with self._lock:
            if self._last is None or time.monotonic() - self._at > _KEPT_SECONDS:
                self._last = await examine(parts)
                self._at = time.monotonic()
            healths, error = self._last
        if error is not None:
            shown = {name: health.model_dump(exclude_none=True) for name, health in healths.items()}
            raise type(error)(error.detail, **{**error.extra, "parts": shown})
        return Readiness(parts=healths)


async def examine(parts: Parts) -> Examined:
    required = {"database": _database(parts), "index": _index(parts), "engine": _engine(parts)}
    checks = {**required, "broker": _broker(parts.settings)}
    if parts.settings.object_store is not None:
        checks["object_store"] = _object_store(parts)
    errors = dict(zip(checks, await asyncio.gather(*map(_error_of, checks, checks.values())), strict=True))
    healths = {name: _health(error, name in required) for name, error in errors.items()}
    wrong = [error for name, error in errors.items() if error is not None and name in required]
    # What waiting does not mend comes first.
    return healths, min(wrong, key=lambda error: isinstance(error, Starting), default=None)


async def _error_of(name: str, check: Awaitable[None]) -> KmserveError | None:
    try:
        async with asyncio.timeout(_PATIENCE_SECONDS):
            await check
    except Exception as error:  # whatever a driver raises, the part does not work
        ours = known(error)
        if ours is None:
            logger.warning("the %s is not healthy", name, exc_info=error)
        return ours or Unavailable(f"the {name} does not answer; the server's log says why")
    return None


def _health(error: KmserveError | None, required: bool) -> PartHealth:
    if error is None:
        return PartHealth(ok=True, required=required)
    return PartHealth(ok=False, required=required, code=error.code, detail=error.detail)


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


async def _object_store(parts: Parts) -> None:
    await asyncio.to_thread(parts.modules.below, _TENANT)


async def _broker(settings: Settings) -> None:
    if not settings.celery_url.startswith("filesystem:"):
        await asyncio.to_thread(_connect, settings.celery_url)


def _connect(url: str) -> None:
    with Connection(url, connect_timeout=2) as connection:
        connection.ensure_connection(max_retries=1, interval_start=0, timeout=3)
