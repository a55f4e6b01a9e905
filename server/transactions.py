"""One transaction around one function over a session, for coroutines: SQL is written once, synchronously, and run from both sides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

from sqlalchemy.orm import Session

from server.db.session import Database

P = ParamSpec("P")
T = TypeVar("T")


async def reading(database: Database, work: Callable[Concatenate[Session, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
    """`work(session, ...)` in a transaction of its own, which is over when this returns."""
    async with database.read() as session:
        return await session.run_sync(work, *args, **kwargs)


async def writing(database: Database, work: Callable[Concatenate[Session, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Like `reading`, with the write lock from the start."""
    async with database.write() as session:
        return await session.run_sync(work, *args, **kwargs)


async def overwrite_deleted(database: Database) -> None:
    """Let nothing of deleted rows stay in SQLite's log: its pages go to the file, where they are overwritten. Busy readers put it off."""
    if database.engine.dialect.name != "sqlite":
        return
    connection = await database.engine.raw_connection()
    try:
        driver: Any = connection.driver_connection
        await driver.execute_fetchall("PRAGMA wal_checkpoint(TRUNCATE)")
    finally:
        connection.close()
