"""Migrated databases for tests."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.engine import make_url

from server.db.migrate import upgrade
from server.db.session import SyncDatabase


def sqlite_url(folder: Path) -> str:
    return f"sqlite:///{folder / 'kmserve.db'}"


def migrated(url: str) -> SyncDatabase:
    """A database of the newest schema. A SQLite file that is not there yet is copied: the migrations run once a process."""
    file = make_url(url).database
    if url.startswith("sqlite") and file and not Path(file).exists():
        Path(file).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        Path(file).write_bytes(migrated_bytes())
    else:
        upgrade(url)
    return SyncDatabase(url)


@cache
def migrated_bytes() -> bytes:
    """An empty SQLite database of the newest schema."""
    with tempfile.TemporaryDirectory() as folder:
        upgrade(sqlite_url(Path(folder)))
        return Path(folder, "kmserve.db").read_bytes()


def empty_postgres(url: str) -> None:
    """Drop everything, so that tests can share one server."""
    database = SyncDatabase(url)
    with database.write() as session:
        session.execute(text("DROP SCHEMA public CASCADE"))
        session.execute(text("CREATE SCHEMA public"))
    database.close()
