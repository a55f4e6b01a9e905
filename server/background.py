"""What the API process does besides answering: takes jobs from dead workers, rings for forgotten ones, finishes deletions."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from server.db import jobs, material
from server.documents import deletion, idempotency
from server.errors import ObjectStoreUnavailable
from server.extractors import deletion as extractor_deletion
from server.parts import Parts
from server.transactions import writing

logger = logging.getLogger(__name__)

_ABANDONED_SECONDS: Final = 24 * 3600.0


async def keep_house(parts: Parts, *, sole_owner: bool) -> None:
    """For ever: one round now and one every `reap_seconds`. `sole_owner`: no other process takes uploads, so that whatever is in flight
    at the start belongs to a dead one."""
    started, cleared = time.time(), False
    while True:
        try:
            if not cleared:
                await _clear_interrupted(parts, started if sole_owner else None)
                cleared = True
            await housework(parts)
        except Exception:
            # A database out of reach, or a defect of ours, must not end the house-keeping.
            logger.exception("house-keeping goes on after an error")
        await asyncio.sleep(parts.settings.reap_seconds)


async def housework(parts: Parts) -> None:
    """One round."""
    reaped = await writing(parts.database, jobs.reap_once, ring_seconds=parts.settings.ring_seconds)
    for job in reaped.jobs:
        logger.warning("job %s: attempt %d was not heard of any more, the job is %s", job.id, job.attempt, job.state)
    if reaped.ring:
        parts.tasks.start(asyncio.to_thread(parts.ring))
    parts.notify_ingest()
    await writing(parts.database, idempotency.sweep)
    await writing(parts.database, material.sweep)
    # One object store that does not answer is waited for once a round: dead workers' jobs wait for the next.
    with suppress(ObjectStoreUnavailable):
        await deletion.sweep(parts)
        await extractor_deletion.sweep(parts)


async def _clear_interrupted(parts: Parts, started: float | None) -> None:
    """Uploads that a crash cut off: their Idempotency-Keys and their bytes. `started` is when the only process that takes uploads did;
    it takes some already."""
    if started is not None:
        await writing(parts.database, idempotency.free_reserved_before, started)
    before = time.time() - _ABANDONED_SECONDS if started is None else started
    await asyncio.to_thread(_clear, parts.blobs.temporary().parent, before)


def _clear(folder: Path, before: float) -> None:
    for file in folder.iterdir():
        if file.stat().st_mtime < before:
            file.unlink(missing_ok=True)
