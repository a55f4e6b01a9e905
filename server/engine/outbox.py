"""Events on their way from the engine's thread to the event loops that wait for them: one wake-up per loop and step.

Knows nothing of engines: a coroutine opens a queue, the engine's thread emits into it and flushes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from server.engine.sequence import Emit, Event

logger = logging.getLogger(__name__)

Mail = tuple["asyncio.Queue[Event]", Event]


class Outbox:
    def __init__(self) -> None:
        self._gathered: dict[asyncio.AbstractEventLoop, list[Mail]] = {}

    def open(self) -> tuple[asyncio.Queue[Event], Emit]:
        """A queue of the running loop, and the `emit` for the engine's thread that fills it at the next flush."""
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[Event] = asyncio.Queue()
        return queue, lambda event: self._gathered.setdefault(loop, []).append((queue, event))

    def flush(self) -> None:
        gathered, self._gathered = self._gathered, {}
        for loop, mails in gathered.items():
            try:
                loop.call_soon_threadsafe(_deliver, mails)
            except RuntimeError:
                logger.warning("%d events for a closed event loop", len(mails))


def _deliver(mails: Sequence[Mail]) -> None:
    for queue, event in mails:
        queue.put_nowait(event)
