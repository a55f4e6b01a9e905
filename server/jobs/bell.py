"""The API's end of the bell: wakes a worker after training jobs were queued. Never part of a transaction, and never fails one."""

from __future__ import annotations

from celery import Celery

from server.broker import celery_options, ring
from server.settings import Settings


class Bell:
    """Thread-safe. `ring` may take seconds when the broker is down: in a coroutine, `await asyncio.to_thread(bell.ring)`."""

    def __init__(self, settings: Settings) -> None:
        self._app = Celery("kmserve", set_as_current=False)
        self._app.conf.update(celery_options(settings))

    def ring(self) -> bool:
        """Whether the broker took it; a lost ring is made up for by the reaper."""
        return ring(self._app)

    def close(self) -> None:
        self._app.close()
