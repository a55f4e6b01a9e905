"""Migrated databases for tests."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import text

from server.db.migrate import upgrade
from server.db.session import SyncDatabase


def sqlite_url(folder: Path) -> str:
    return f"sqlite:///{folder / 'kmserve.db'}"


def migrated(url: str) -> SyncDatabase:
    upgrade(url)
    return SyncDatabase(url)


def empty_postgres(url: str) -> None:
    """Drop everything, so that tests can share one server."""
    database = SyncDatabase(url)
    with database.write() as session:
        session.execute(text("DROP SCHEMA public CASCADE"))
        session.execute(text("CREATE SCHEMA public"))
    database.close()
