"""Bring a database to the newest schema. Several processes may start at once: one migrates, the others wait and find it done."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, text
from sqlalchemy.engine import make_url

from server.db.session import SyncDatabase

MIGRATIONS: Final = Path(__file__).parent / "migrations"
_ADVISORY_LOCK: Final = 0x6B6D7365


def upgrade(url: str) -> None:
    """Create or migrate the schema, in one transaction that holds the database's write lock; makes the folder of a SQLite file."""
    _make_folder(url)
    database = SyncDatabase(url)
    try:
        with database.engine.execution_options(kmserve_write=True).begin() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
            command.upgrade(config(connection), "head")
    finally:
        database.close()


def config(connection: Connection) -> Config:
    """Alembic's configuration over an open connection; there is no alembic.ini."""
    settings = Config()
    settings.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    settings.attributes["connection"] = connection
    return settings


def _make_folder(url: str) -> None:
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite" and parsed.database:
        Path(parsed.database).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
