"""Connections and transactions: one `Database` for asyncio (API) and one `SyncDatabase` (worker), over SQLite or PostgreSQL.

A transaction says at its start whether it writes: on SQLite a writer takes the lock at once (BEGIN IMMEDIATE), so that it waits for the
busy timeout instead of failing half-way, and readers never block (WAL). Commit at the end of the block, rollback on any error.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

BUSY_TIMEOUT_SECONDS = 30
_WRITE = {"kmserve_write": True}


class Database:
    """The API's side: `aiosqlite` or `asyncpg`."""

    def __init__(self, url: str) -> None:
        self.engine = create_async_engine(_driver(url, sqlite="aiosqlite", postgresql="asyncpg"), **_options(url))
        _prepare(self.engine.sync_engine)

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncSession]:
        async with AsyncSession(self.engine, expire_on_commit=False) as session, session.begin():
            yield session

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncSession]:
        engine = self.engine.execution_options(**_WRITE)
        async with AsyncSession(engine, expire_on_commit=False) as session, session.begin():
            yield session

    async def close(self) -> None:
        await self.engine.dispose()


class SyncDatabase:
    """The worker's side: `sqlite3` or `psycopg`."""

    def __init__(self, url: str) -> None:
        self.engine = create_engine(_driver(url, sqlite="pysqlite", postgresql="psycopg"), **_options(url))
        _prepare(self.engine)

    @contextmanager
    def read(self) -> Iterator[Session]:
        with Session(self.engine, expire_on_commit=False) as session, session.begin():
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        engine = self.engine.execution_options(**_WRITE)
        with Session(engine, expire_on_commit=False) as session, session.begin():
            yield session

    def close(self) -> None:
        self.engine.dispose()


def _driver(url: str, **drivers: str) -> URL:
    parsed = make_url(url)
    backend = parsed.get_backend_name()
    if backend not in drivers:
        raise ValueError(f"the database must be sqlite or postgresql, not {backend}")
    return parsed.set(drivername=f"{backend}+{drivers[backend]}")


def _options(url: str) -> dict[str, Any]:
    hidden = {"hide_parameters": True}  # errors reach the log, and parameters are documents' text
    if make_url(url).get_backend_name() == "sqlite":
        return {**hidden, "connect_args": {"timeout": BUSY_TIMEOUT_SECONDS}}
    return {**hidden, "pool_pre_ping": True}


def _prepare(engine: Engine) -> None:
    """Take transaction control from the sqlite3 module, which opens transactions late and never immediate ones."""
    if engine.dialect.name != "sqlite":
        return

    @event.listens_for(engine, "connect")
    def _connect(dbapi_connection: Any, _record: Any) -> None:
        dbapi_connection.isolation_level = None
        cursor = dbapi_connection.cursor()
        for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON", "secure_delete=ON"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("kmserve_write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
