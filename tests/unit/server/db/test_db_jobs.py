from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from server.db.session import SyncDatabase
from tests.support.databases import migrated, sqlite_url
from tests.support.jobs_contract import ClaimContract, EndContract, FenceContract, WaitContract
from tests.support.jobs_stopping_contract import CancelContract, DocumentContract, ReapContract


@pytest.fixture
def database(tmp_path: Path) -> Iterator[SyncDatabase]:
    database = migrated(sqlite_url(tmp_path))
    yield database
    database.close()


class TestClaim(ClaimContract): ...


class TestFence(FenceContract): ...


class TestEnd(EndContract): ...


class TestWait(WaitContract): ...


class TestCancel(CancelContract): ...


class TestReap(ReapContract): ...


class TestDocument(DocumentContract): ...
