from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from server import cli_progress
from server.cli import app
from tests.support.fake_kmserve import KEY, FakeKmserve, running


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeKmserve]:
    monkeypatch.setattr(cli_progress, "LOOK_SECONDS", 0.01)
    with running(FakeKmserve()) as fake:
        monkeypatch.setenv("KMS_URL", fake.url)
        monkeypatch.setenv("KMS_API_KEY", KEY)
        monkeypatch.setenv("KMSERVE_DATA_DIR", str(tmp_path / "data"))
        monkeypatch.setenv("COLUMNS", "200")
        yield fake


@pytest.fixture
def questions(tmp_path: Path) -> str:
    file = tmp_path / "questions.jsonl"
    file.write_text('{"document_id": "doc_1", "question": "How many days?", "answer": "31"}\n')
    return str(file)


def run(*arguments: str, code: int = 0, answer: str | None = None) -> str:
    result = CliRunner().invoke(app, ["extractors", *arguments], input=answer)
    assert result.exit_code == code, result.output
    return result.output


@pytest.mark.parametrize("command", ["list", "train", "activate", "deactivate", "delete"])
def test_every_command_has_help_with_an_example(command: str) -> None:
    assert f"kmserve extractors {command}" in run(command, "--help")


def test_train_says_which_job_it_started(server: FakeKmserve, questions: str) -> None:
    output = run("train", questions, "--name", "Short", "--recipe", "max_steps=9", "--recipe", "learn=all", "-d", "doc_1", "--seed", "7")
    assert "job_1 is queued" in output
    [request] = server.extractors.requests
    for part in (
        b"How many days?",
        b'filename="questions.jsonl"',
        b'{"max_steps": 9, "learn": "all"}',
        b'["doc_1"]',
        b"\r\n7\r\n",
        b"Short",
    ):
        assert part in request
    assert b"activate" not in request
    assert b"start" not in request


def test_train_says_what_to_start_from(server: FakeKmserve, questions: str) -> None:
    run("train", questions, "--start", "nothing")
    [request] = server.extractors.requests
    assert b'name="start"' in request
    assert b"\r\nnothing\r\n" in request
    assert "active" in run("train", questions, "--start", "ext_1", code=2)


def test_train_wait_follows_the_job_to_the_extractor(server: FakeKmserve, questions: str) -> None:
    output = run("train", questions, "--wait")
    assert "succeeded" in output
    assert "ext_1 is trained: `kmserve extractors activate ext_1` lets it answer" in output
    assert "ext_2 is trained: it is active" in run("train", questions, "--wait", "--activate")


def test_train_wait_fails_where_none_comes(server: FakeKmserve, questions: str) -> None:
    server.extractors.outcome = "failed"
    assert "failed: it learned too little [gate_not_passed]" in run("train", questions, "--wait", code=1)


def test_a_recipe_has_names_and_values(server: FakeKmserve, questions: str) -> None:
    assert "NAME=VALUE" in run("train", questions, "--recipe", "max_steps", code=1)
    assert server.extractors.requests == []


def test_list_shows_extractors_and_what_is_being_trained(server: FakeKmserve, questions: str) -> None:
    assert "no extractors yet" in run("list")
    run("train", questions, "--wait", "--activate")
    run("train", questions)
    output = run("list").splitlines()
    assert output[1].split() == ["ext_1", "Short", "default", "yes", "3", "modules"]
    assert output[-1] == "job_2 is running, fitting"


def test_activate_says_what_is_trained_again(server: FakeKmserve, questions: str) -> None:
    run("train", questions, "--wait")
    assert "ext_1 is active; 2 documents are trained again" in run("activate", "ext_1")
    assert run("deactivate", "ext_1").strip() == "ext_1 is not active"


def test_delete_asks_first_and_says_why_not(server: FakeKmserve, questions: str) -> None:
    run("train", questions, "--wait", "--activate")
    assert "was kept" in run("delete", "ext_1", code=1, answer="n\n")
    assert "is active" in run("delete", "ext_1", "--yes", code=1)
    run("deactivate", "ext_1")
    assert "deleted ext_1" in run("delete", "ext_1", "--yes")
    output = run("delete", "ext_1", "--yes", code=1)
    assert "kmserve extractors list" in output
