from __future__ import annotations

import pytest

from worker.events import Failure, Metrics, Progress, Result, parse_event


def test_every_event_is_read() -> None:
    progress = '{"event": "progress", "stage": "fitting", "done": 1, "total": 9, "unit": "steps", "eta_seconds": null}'
    assert parse_event(progress) == Progress(stage="fitting", done=1, total=9, unit="steps", eta_seconds=None)
    assert parse_event('{"event": "metrics", "metrics": {"loss": 1.5}}') == Metrics(metrics={"loss": 1.5})
    assert parse_event('{"event": "error", "code": "nothing_to_learn", "message": "m"}') == Failure(code="nothing_to_learn", message="m")
    result = '{"event": "result", "artefact": "a", "digest": "d", "manifest_sha256": "m", "gate": {}}'
    assert parse_event(result) == Result(artefact="a", digest="d", manifest_sha256="m", gate={})


@pytest.mark.parametrize(
    "line", ["", "loading weights", "3", "[]", "{}", '{"event": "progress", "stage": "x"}', '{"event": "metrics", "metrics": 3}']
)
def test_anything_else_is_none(line: str) -> None:
    assert parse_event(line) is None


def test_what_is_no_event_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    assert parse_event("the document says canary") is None
    assert "24 characters" in caplog.text
    assert "canary" not in caplog.text
