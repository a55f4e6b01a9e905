"""A request under its Idempotency-Key, from before its body is read to its answer: for routes, whatever they make."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Header

from server.documents import idempotency
from server.documents.idempotency import Reservation, Stored
from server.parts import Parts
from server.transactions import writing

IdempotencyKey = Annotated[str | None, Header(min_length=1, max_length=255)]


@asynccontextmanager
async def reserved(parts: Parts, tenant_id: str, key: str | None) -> AsyncIterator[Stored | Reservation | None]:
    """What was answered under the key, or a reservation for whoever makes the answer; None without a key. The key is free again after
    any error. Raises IdempotencyInFlight."""
    if key is None:
        yield None
        return
    mine = Reservation.of(tenant_id, key)
    try:
        stored = await writing(parts.database, idempotency.reserve, mine)
        yield stored or mine
    except BaseException:
        # Also when the reserving itself was cancelled: it may have been committed all the same.
        await parts.tasks.start(writing(parts.database, idempotency.abandon, mine))
        raise
