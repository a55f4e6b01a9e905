"""The promises of server/db/{activation,material}.py on a real PostgreSQL, through the same code as on SQLite."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from server.db.session import SyncDatabase
from tests.support.databases import empty_postgres, migrated
from tests.support.extractor_jobs_contract import ActivationContract, ExtractorJobContract
from tests.support.servers import postgres_server


@pytest.fixture(scope="module")
def postgres_url() -> Iterator[str]:
    with postgres_server() as url:
        yield url


@pytest.fixture
def database(postgres_url: str) -> Iterator[SyncDatabase]:
    empty_postgres(postgres_url)
    database = migrated(postgres_url)
    yield database
    database.close()


class TestExtractorJob(ExtractorJobContract): ...


class TestActivation(ActivationContract): ...
