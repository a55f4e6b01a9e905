"""Logs: a line a request with its id, in one format, and nothing in them that is not for logs."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from io import StringIO

import pytest
import structlog

from server import observability
from server.settings import Settings
from tests.support.api import Api, api, migrated_file, settings
from tests.support.asking import LEAVE, QUESTION, ready

__all__ = ["api", "migrated_file", "settings"]


@pytest.fixture
def log() -> Iterator[StringIO]:
    root = logging.getLogger()
    before = root.handlers, root.level
    stream = StringIO()
    observability.configure(Settings(log_format="json"), stream)
    yield stream
    root.handlers, root.level = before
    structlog.reset_defaults()


async def test_each_request_is_one_line_without_keys_questions_or_text(api: Api, log: StringIO) -> None:
    document, _, _ = await ready(api)
    log.truncate(0)
    log.seek(0)
    key = api.client.headers["authorization"]
    await api.client.post("/ask", json={"question": QUESTION, "document_id": document}, headers={"X-Request-ID": "request-0001"})
    text = log.getvalue()
    lines = [json.loads(line) for line in text.splitlines()]
    [line] = [line for line in lines if line["event"] == "request"]
    assert (line["method"], line["path"], line["status"], line["tenant"], line["request_id"]) == (
        "POST",
        "/ask",
        200,
        "acme",
        "request-0001",
    )
    assert line["seconds"] >= 0
    assert line["level"] == "info"
    for secret in (key, key.removeprefix("Bearer "), QUESTION, LEAVE, "31 days"):
        assert secret not in text


async def test_a_defect_is_logged_with_the_request_it_broke(api: Api, log: StringIO) -> None:
    api.engine.error = RuntimeError("a defect")
    response = await api.client.post("/ask", json={"question": QUESTION, "mode": "base"})
    text = log.getvalue()
    lines = [json.loads(line) for line in text.splitlines()]
    [failed] = [line for line in lines if "request failed" in line["event"]]
    assert failed["request_id"] == response.json()["request_id"] == response.headers["x-request-id"]
    assert "a defect" in failed["exception"]
    assert QUESTION not in text


def test_the_standard_library_logs_in_the_same_format_and_secrets_by_name_are_left_out(log: StringIO) -> None:
    logging.getLogger("worker").warning("hello %s", "world")
    structlog.get_logger("server").info("asked", question="how many?", document="doc_1")
    first, second = [json.loads(line) for line in log.getvalue().splitlines()]
    assert (first["event"], first["level"], first["logger"]) == ("hello world", "warning", "worker")
    assert (second["question"], second["document"]) == ("[not logged]", "doc_1")


async def test_health_checks_do_not_fill_the_log(api: Api, log: StringIO) -> None:
    await api.client.get("/health/live")
    assert log.getvalue() == ""
