"""Refusals that no route makes: unknown paths, other methods, bodies too long, errors of libraries."""

from __future__ import annotations

import errno
import json
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from server.body_limit import MAX_BODY_BYTES
from server.db.session import SyncDatabase
from server.errors import DatabaseUnavailable, DocumentNotFound, ModuleNotReady, StorageFull
from server.problems import known, problem_of
from tests.support.api import Api, api, migrated_file, settings

__all__ = ["api", "migrated_file", "settings"]


async def told(response: Any) -> tuple[int, str]:
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["request_id"] == response.headers["x-request-id"]
    assert (problem["type"], problem["status"]) == (f"urn:kmserve:error:{problem['code']}", response.status_code)
    return response.status_code, problem["code"]


async def test_an_unknown_path(api: Api) -> None:
    for path in ("/nothing", "/documents/", "/v1/ask", "/documents/a/b/c"):
        assert await told(await api.client.get(path)) == (404, "not_found")


async def test_another_method(api: Api) -> None:
    response = await api.client.put("/documents")
    assert await told(response) == (405, "method_not_allowed")
    assert set(response.headers["allow"].split(", ")) & {"GET", "POST"}


@pytest.mark.parametrize("content", [b"", b"{", b"not json", b"[]", b'"text"', b"\xff\xfe", b"[" * 100_000])
async def test_a_body_that_is_not_the_json_it_should_be(api: Api, content: bytes) -> None:
    response = await api.client.post("/search", content=content, headers={"Content-Type": "application/json"})
    assert response.status_code in (400, 422)
    assert (await told(response))[1] == "invalid_input"


async def test_a_body_of_another_type(api: Api) -> None:
    response = await api.client.post("/search", content=b"query=x", headers={"Content-Type": "application/x-www-form-urlencoded"})
    assert await told(response) == (422, "invalid_input")


async def test_a_body_that_is_too_long(api: Api) -> None:
    async def unannounced() -> Any:
        for _ in range(64):
            yield b" " * 64 * 1024

    body = json.dumps({"query": "x" * MAX_BODY_BYTES})
    for content in (body.encode(), unannounced()):
        response = await api.client.post("/search", content=content, headers={"Content-Type": "application/json"})
        assert await told(response) == (413, "request_too_large")


async def test_invalid_values_are_named_and_not_repeated(api: Api) -> None:
    response = await api.client.post("/search", json={"query": 5, "top_k": "the secret"})
    assert await told(response) == (422, "invalid_input")
    assert [error["loc"] for error in response.json()["errors"]] == [["body", "query"], ["body", "top_k"]]
    assert "secret" not in response.text


def test_members_of_an_error_cannot_replace_the_standard_ones() -> None:
    problem = problem_of(ModuleNotReady("not yet", job="/jobs/1", status=200, code="fine"))
    assert (problem["status"], problem["code"], problem["job"], problem["detail"]) == (409, "module_not_ready", "/jobs/1", "not yet")


def test_errors_of_libraries_that_an_operator_can_mend_are_ours() -> None:
    ours = DocumentNotFound("no such document")
    assert known(ours) is ours
    assert isinstance(known(OSError(errno.ENOSPC, "full", "/secret/path")), StorageFull)
    assert isinstance(known(OperationalError("SELECT", {}, Exception("database or disk is full"))), StorageFull)
    assert isinstance(known(OperationalError("SELECT", {}, Exception("unable to open"))), DatabaseUnavailable)
    assert known(OSError(errno.EACCES, "denied")) is None
    assert known(ValueError("defect")) is None


async def test_a_full_disk_keeps_nothing_of_an_upload(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(api.parts.blobs, "adopt", full)
        response = await api.client.post("/documents", json={"text": "Staff get 31 days."}, headers={"Idempotency-Key": "k"})
    assert await told(response) == (507, "storage_full")
    assert [path for path in (api.parts.settings.root / "blobs").rglob("*") if path.is_file()] == []
    again = await api.client.post("/documents", json={"text": "Staff get 31 days."}, headers={"Idempotency-Key": "k"})
    assert again.status_code == 202


def test_errors_of_the_database_do_not_show_what_was_written(tmp_path: Any) -> None:
    database = SyncDatabase(f"sqlite:///{tmp_path / 'x.db'}")
    insert = text("INSERT INTO nothing VALUES (:text)")
    with database.write() as session, pytest.raises(OperationalError) as caught:
        session.execute(insert, {"text": "the document's words"})
    assert "the document's words" not in str(caught.value)
    database.close()
