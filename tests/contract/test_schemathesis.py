"""A few generated requests for every operation, against the API's own description: no server errors, no undescribed answers."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import hypothesis
import pytest
import schemathesis
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance, status_code_conformance

from server.api_keys import repository
from server.app import create_app
from server.db.session import SyncDatabase
from server.openapi import document
from server.parts import Parts
from server.settings import Settings
from tests.support.api import fake_parts
from tests.support.databases import migrated
from tests.support.fakes import Counter, FakeEngine, FakeIndex
from tests.support.live_api import served
from tests.support.rows import extractor

EXAMPLES = int(os.environ.get("SCHEMATHESIS_EXAMPLES", "6"))
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
"""The rest of schemathesis' checks ask for what JSON schema cannot say of our rules, e.g. that 0 tokens need `score`."""


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx2.Client]:
    settings = Settings(data_dir=tmp_path_factory.mktemp("contract"), max_upload_bytes=64 * 1024)
    database = migrated(settings.sql_url)
    parts = fake_parts(settings, FakeEngine(), FakeIndex(), Counter())
    new = parts.keys.new()
    _add_extractors(database, parts)
    _add_key(database, new.prefix, new.hash)
    with (
        served(create_app(settings, parts)) as url,
        httpx2.Client(base_url=url, headers={"Authorization": f"Bearer {new.text}"}) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def api_schema(live: httpx2.Client) -> Any:
    return schemathesis.openapi.from_dict(live.get("/openapi.json").json())


@pytest.mark.parametrize("where", [f"{method.upper()} {path}" for path, methods in document()["paths"].items() for method in methods])
def test_generated_requests_get_described_answers(where: str, api_schema: Any, live: httpx2.Client) -> None:
    method, path = where.split()

    @hypothesis.settings(max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(hypothesis.HealthCheck))
    @hypothesis.given(case=api_schema[path][method].as_strategy())
    def check(case: Any) -> None:
        _aim(case, live)
        response = case.call(base_url=str(live.base_url), headers=dict(live.headers), timeout=30)
        case.validate_response(response, checks=CHECKS)

    check()


def _aim(case: Any, live: httpx2.Client) -> None:
    """Every other request is about a document, a job or an extractor that is there; none waits for long."""
    for name, there in (("job_id", _job), ("extractor_id", _extractor)):
        if name in (case.path_parameters or {}) and len(case.path_parameters[name]) % 2 == 0:
            case.path_parameters[name] = there(live)
    if "document_id" in (case.path_parameters or {}) and len(case.path_parameters["document_id"]) % 2 == 0:
        case.path_parameters["document_id"] = live.post("/documents", json={"text": "Staff get 31 days."}).json()["id"]
    if (case.query or {}).get("wait"):
        case.query["wait"] = 1
    if case.path.endswith("/events"):
        live.post(f"/documents/{case.path_parameters['document_id']}/cancel")


def _job(live: httpx2.Client) -> str:
    """One of its own, that is queued."""
    uploaded = live.post("/documents", json={"text": f"Staff get {uuid.uuid4().hex} days."}).json()
    return str(uploaded["job"]["id"])


def _extractor(live: httpx2.Client) -> str:
    return str(live.get("/extractors").json()["items"][0]["id"])


def _add_extractors(database: SyncDatabase, parts: Parts) -> None:
    """More than the generated requests delete; they have no files but for the first, which no request may delete."""
    with database.write() as session:
        for number in range(EXAMPLES + 1):
            digests = {"lora_digest": f"{number:064x}", "composition_digest": f"{number:064x}"}
            extractor(session, "system", "a" * 64, active=number == 0, id=f"ext_{number}", **digests)
    parts.modules.extractor_path("system", f"{0:064x}").mkdir(parents=True)


def _add_key(database: SyncDatabase, prefix: str, key_hash: str) -> None:
    with database.write() as session:
        repository.ensure_tenant(session, "default")
        repository.add(session, tenant_id="default", name="test", prefix=prefix, key_hash=key_hash, scopes=["admin"])
    database.close()


def test_the_data_directory_holds_nothing_that_was_not_asked_for(live: httpx2.Client, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whatever names the generated uploads had, their bytes lie under blobs."""
    assert live.get("/health/live").status_code == 200
    for folder in Path(tmp_path_factory.getbasetemp()).glob("contract*"):
        assert {path.name for path in folder.iterdir()} <= {
            "kmserve.db",
            "kmserve.db-wal",
            "kmserve.db-shm",
            "blobs",
            "modules",
            "quarantine",
        }
