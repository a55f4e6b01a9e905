from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert

from server.db import extractors, modules
from server.db.clock import db_now
from server.db.documents import tombstone
from server.db.modules import NewModule
from server.db.session import SyncDatabase
from server.db.tables import Extractor, ModuleState
from tests.support.databases import migrated, sqlite_url
from tests.support.rows import Uploaded, document_row, upload


@pytest.fixture
def database(tmp_path: Path) -> Iterator[SyncDatabase]:
    database = migrated(sqlite_url(tmp_path))
    yield database
    database.close()


def new(document: Uploaded, digest: str = "d1") -> NewModule:
    proof: dict[str, Any] = {
        "digest": digest,
        "manifest_sha256": "m",
        "base_fingerprint": "b",
        "wears": None,
        "scope": "all",
        "gate": {"passed": True},
    }
    return NewModule(**vars(document), job_id="job_1", **proof)


def test_versions_count_up_and_the_pointer_moves(database: SyncDatabase) -> None:
    with database.write() as session:
        document = upload(session)
        assert modules.active(session, "acme", document.document_id) is None
        first, second = modules.insert_version(session, new(document)), modules.insert_version(session, new(document, "d2"))
        modules.activate(session, first)
        modules.activate(session, second)
    with database.read() as session:
        active = modules.active(session, "acme", document.document_id)
        assert active is not None
        assert (active.version, active.digest, active.state) == (2, "d2", ModuleState.PUBLISHED)
        assert [(module.version, module.digest) for module in modules.versions(session, "acme", document.document_id)] == [
            (2, "d2"),
            (1, "d1"),
        ]
        assert document_row(session, document).row_version == 3


def test_another_tenant_sees_no_module(database: SyncDatabase) -> None:
    with database.write() as session:
        document = upload(session)
        modules.activate(session, modules.insert_version(session, new(document)))
        assert modules.active(session, "umbrella", document.document_id) is None
        assert modules.versions(session, "umbrella", document.document_id) == []
        assert modules.in_use(session, "umbrella", document.document_id, "d1") is False
        assert modules.in_use(session, "acme", document.document_id, "d1") is True


def test_a_deleted_document_has_no_active_module(database: SyncDatabase) -> None:
    with database.write() as session:
        document = upload(session)
        modules.activate(session, modules.insert_version(session, new(document)))
        tombstone(session, "acme", document.document_id)
        assert modules.active(session, "acme", document.document_id) is None


def test_quarantine_keeps_the_pointer(database: SyncDatabase) -> None:
    with database.write() as session:
        document = upload(session)
        module = modules.insert_version(session, new(document))
        modules.activate(session, module)
        modules.quarantine(session, "acme", module.id, "digest differs")
    with database.read() as session:
        active = modules.active(session, "acme", document.document_id)
        assert active is not None
        assert (active.state, active.state_reason) == (ModuleState.QUARANTINED, "digest differs")


def test_a_tenants_own_extractor_goes_before_the_systems(database: SyncDatabase) -> None:
    with database.write() as session:
        assert extractors.active(session, "acme") is None
        for owner, active in (("system", True), ("acme", True), ("acme", False), ("umbrella", True)):
            proof = {"lora_digest": owner, "composition_digest": "c", "manifest_sha256": "m", "base_fingerprint": "b", "scope": "all"}
            session.execute(insert(Extractor).values(id=f"ext_{owner}_{active}", owner=owner, active=active, created_at=db_now(), **proof))
        for tenant, owner in (("acme", "acme"), ("globex", "system"), ("umbrella", "umbrella")):
            found = extractors.active(session, tenant)
            assert found is not None
            assert found.owner == owner
