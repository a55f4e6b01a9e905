from __future__ import annotations

import stat
from pathlib import Path

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect

from server.db import jobs
from server.db.migrate import config, upgrade
from server.db.session import SyncDatabase
from server.db.tables import Base, JobKind
from tests.support import rows
from tests.support.databases import migrated, sqlite_url


def test_models_and_migrations_agree(tmp_path: Path) -> None:
    database = migrated(sqlite_url(tmp_path))
    with database.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
        indexes = {table: {index["name"] for index in inspect(connection).get_indexes(table)} for table in Base.metadata.tables}
    assert indexes == {name: {index.name for index in table.indexes} for name, table in Base.metadata.tables.items()}


def test_upgrade_makes_a_private_folder_and_may_run_again(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    upgrade(sqlite_url(folder))
    upgrade(sqlite_url(folder))
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_broken_migration_leaves_nothing(tmp_path: Path) -> None:
    """The whole upgrade is one transaction, on SQLite too."""
    database = SyncDatabase(sqlite_url(tmp_path))
    try:
        with database.engine.execution_options(kmserve_write=True).begin() as connection:
            command.upgrade(config(connection), "head")
            raise InterruptedError
    except InterruptedError:
        pass
    with database.engine.connect() as connection:
        assert inspect(connection).get_table_names() == []


def test_downgrade_drops_every_table(tmp_path: Path) -> None:
    database = migrated(sqlite_url(tmp_path))
    with database.engine.execution_options(kmserve_write=True).begin() as connection:
        command.downgrade(config(connection), "base")
        assert inspect(connection).get_table_names() == ["alembic_version"]


def test_a_job_of_the_first_schema_is_worked_on_after_the_upgrade(tmp_path: Path) -> None:
    database = migrated(sqlite_url(tmp_path))
    with database.write() as session:
        job_id = rows.training(session, rows.upload(session)).id
    with database.engine.execution_options(kmserve_write=True).begin() as connection:
        command.downgrade(config(connection), "0001")
        assert "not_before" not in {column["name"] for column in inspect(connection).get_columns("jobs")}
    upgrade(sqlite_url(tmp_path))
    with database.write() as session:
        job = jobs.claim(session, JobKind.TRAIN, "worker-1", 60)
    assert job is not None
    assert job.id == job_id
