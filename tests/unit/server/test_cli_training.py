from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from server.cli import app
from tests.support.fake_kmserve import KEY, FakeKmserve, running


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeKmserve]:
    with running(FakeKmserve()) as fake:
        monkeypatch.setenv("KMS_URL", fake.url)
        monkeypatch.setenv("KMS_API_KEY", KEY)
        monkeypatch.setenv("KMSERVE_DATA_DIR", str(tmp_path / "data"))
        monkeypatch.setenv("COLUMNS", "200")
        fake.add(b"", "Leave policy")
        yield fake


def run(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["documents", *arguments])
    assert result.exit_code == code, result.output
    return result.output


def test_help_has_examples() -> None:
    assert "kmserve documents train" in run("train", "--help")


def test_what_is_given_is_sent(server: FakeKmserve) -> None:
    shown = run("train", "doc_1", "--preset", "standard", "--recipe", '{"max_steps": 100, "scope": "answer"}', "--seed", "3")
    assert "doc_1  Leave policy  training" in shown
    assert "kmserve status doc_1" in shown
    run("train", "doc_1")
    assert server.trainings == [{"preset": "standard", "recipe": {"max_steps": 100, "scope": "answer"}, "seed": 3}, {}]


def test_it_waits_for_the_module(server: FakeKmserve) -> None:
    assert "doc_1  Leave policy  module v1" in run("train", "doc_1", "--wait")


def test_a_training_that_fails_is_an_error(server: FakeKmserve) -> None:
    server.outcome = "retrieval_ready"
    assert "gate_not_passed" in run("train", "doc_1", "--wait", code=1)


@pytest.mark.parametrize("recipe", ["max_steps=100", "[1]", "7", '{"max_steps": '])
def test_a_recipe_is_a_json_object(server: FakeKmserve, recipe: str) -> None:
    assert "--recipe takes a JSON object" in run("train", "doc_1", "--recipe", recipe, code=1)
    assert server.trainings == []


def test_what_the_server_refuses_is_said(server: FakeKmserve) -> None:
    assert "recipe.steps" in run("train", "doc_1", "--recipe", '{"steps": 7}', code=1)
    assert "no such document" in run("train", "doc_9", code=1)


def test_a_preset_that_there_is_not(server: FakeKmserve) -> None:
    assert "standard" in run("train", "doc_1", "--preset", "fast", code=2)
