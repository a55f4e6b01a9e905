"""What a scrape is answered: the requests that this process has served, and what its engine counts at this moment."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest

from server.metrics.engine import Counts
from server.metrics.http import HttpMetrics
from server.parts import Parts

_DISK_SECONDS: Final = 60.0
"""How long the size of the modules on the disk is taken for true: finding it out looks at every file."""


class Meter:
    def __init__(self, requests: HttpMetrics) -> None:
        self._requests = requests
        self._lock = asyncio.Lock()
        self._disk_bytes = 0
        self._measured_at = -_DISK_SECONDS

    async def exposition(self, parts: Parts) -> bytes:
        """In Prometheus' text format. While the models are loaded there is nothing of the engine in it."""
        models = parts.models.peek()
        stats = {} if models is None else models.engine.stats()
        now = CollectorRegistry()
        now.register(Counts({**stats, **parts.modules.stats(), "disk_bytes": float(await self._on_disk(parts))}))
        return generate_latest(self._requests.registry) + generate_latest(now)

    async def _on_disk(self, parts: Parts) -> int:
        async with self._lock:
            if time.monotonic() - self._measured_at > _DISK_SECONDS:
                self._disk_bytes = await asyncio.to_thread(parts.modules.size)
                self._measured_at = time.monotonic()
            return self._disk_bytes
