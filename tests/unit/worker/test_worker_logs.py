from __future__ import annotations

import json
import logging
import sys

from worker.logs import JsonFormatter


def test_a_line_is_one_json_object() -> None:
    record = logging.LogRecord("worker.supervisor", logging.WARNING, __file__, 1, "job %s:\nended", ("job_1",), None)
    line = JsonFormatter().format(record)
    assert "\n" not in line
    assert {**json.loads(line), "time": None} == {
        "time": None,
        "level": "warning",
        "logger": "worker.supervisor",
        "message": "job job_1:\nended",
    }


def test_an_exception_is_in_its_line() -> None:
    try:
        raise ValueError("why")
    except ValueError:
        record = logging.LogRecord("worker", logging.ERROR, __file__, 1, "failed", (), sys.exc_info())
    assert "ValueError: why" in json.loads(JsonFormatter().format(record))["exception"]
