"""On SQLite; tests/integration/test_postgres_extractors.py asks the same of PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from server.db.session import SyncDatabase
from tests.support.databases import migrated, sqlite_url
from tests.support.extractor_jobs_contract import ActivationContract, ExtractorJobContract


@pytest.fixture
def database(tmp_path: Path) -> Iterator[SyncDatabase]:
    database = migrated(sqlite_url(tmp_path))
    yield database
    database.close()


class TestExtractorJob(ExtractorJobContract): ...


class TestActivation(ActivationContract): ...
