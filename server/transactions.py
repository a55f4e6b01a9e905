"""One transaction around one function over a session, for coroutines: SQL is written once, synchronously, and run from both sides.

A transaction ends even when its caller is cancelled: cut off half-way, nobody would know whether it was committed, and its connection
may keep SQLite's write lock.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, TypeVar

from sqlalchemy.orm import Session
from sqlalchemy.util import greenlet_spawn

from server.db.session import Database

P = ParamSpec("P")
T = TypeVar("T")


async def reading(database: Database, work: Callable[Concatenate[Session, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
    """`work(session, ...)` in a transaction of its own, which is over when this returns."""

    async def transaction() -> T:
        async with database.read() as session:
            return await session.run_sync(work, *args, **kwargs)

    return await whole(transaction())


async def writing(database: Database, work: Callable[Concatenate[Session, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Like `reading`, with the write lock from the start."""

    async def transaction() -> T:
        async with database.write() as session:
            return await session.run_sync(work, *args, **kwargs)

    return await whole(transaction())


async def whole(steps: Coroutine[Any, Any, T]) -> T:
    """Let them come to their end even when the caller is cancelled, who goes on only then."""
    task = asyncio.create_task(steps)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise


async def overwrite_deleted(database: Database) -> None:
    """Let nothing of deleted rows stay in SQLite's log: its pages go to the file, where they are overwritten. Busy readers put it off."""
    if database.engine.dialect.name != "sqlite":
        return
    connection = await database.engine.raw_connection()
    try:
        driver: Any = connection.driver_connection
        await driver.execute_fetchall("PRAGMA wal_checkpoint(TRUNCATE)")
    finally:
        await greenlet_spawn(connection.close)
