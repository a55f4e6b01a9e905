from __future__ import annotations

import json
import os
import re
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from kmserve_client.errors import DocumentFailed
from kmserve_client.models import Score
from rich.console import Console

from server import cli_stack, cli_up
from server.cli_connection import CliError
from server.cli_demo import EXAMPLES, read_questions, run_demo
from server.cli_demo_report import Asked, Question, passed, preferred
from server.cli_stack import Stack, StackError
from server.settings import Settings

TREE = Path(__file__).resolve().parents[3]
FAKE_API = (str(TREE / "tests" / "support" / "fake_kmserve.py"),)
SLEEP = ("-c", "import time; time.sleep(600)")


class Recorded(Stack):
    """A stack whose children's ids are remembered after they are gone."""

    pids: list[int]

    def stop(self) -> None:
        Recorded.pids = [child.process.pid for child in self._children]
        super().stop()


@pytest.fixture
def examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ten questions about a policy, and a base model that is prepared: a directory. What is waited for is looked at all the time."""
    (tmp_path / "policy.md").write_text("Everyone gets 31 days.")
    items = [{"question": f"Question {n}?", "gold": "31 days", "wrong": "45 days"} for n in range(10)]
    (tmp_path / "questions.json").write_text(json.dumps(items))
    (tmp_path / "model").mkdir()
    monkeypatch.setattr(cli_up, "_POLL_SECONDS", 0.02)
    monkeypatch.setattr(cli_stack, "_LOOK_SECONDS", 0.02)
    monkeypatch.setenv("KMSERVE_BASE_MODEL", str(tmp_path / "model"))
    return tmp_path


def demo(examples: Path, **commands: Any) -> tuple[bool, str]:
    output = StringIO()
    make = partial(Recorded, **{"api": FAKE_API, "worker": SLEEP, **commands})
    succeeded = run_demo(Console(file=output, width=160), examples, make)
    return succeeded, output.getvalue()


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_the_demo_compares_the_modes_and_leaves_nothing_running(examples: Path) -> None:
    succeeded, output = demo(examples)
    assert succeeded
    for mode in ("base", "closed_book", "retrieval", "open_book"):
        assert output.count(f"{mode} says 31 days") == 10
    assert re.search(r"closed_book +│ +10 of 10 +│ +-1\.00 +│ +-2\.50", output)
    assert "closed_book must prefer gold in at least 7 of 10 and in more than base; it does in 10, base in 0" in output
    for phase in (
        "prepare the base model",
        "start the API and the worker",
        "upload and index",
        "train the module",
        "ask",
        "stop everything",
    ):
        assert re.search(rf"{phase} +\d+\.\d *\n", output)
    assert len(Recorded.pids) == 2
    assert all(map(gone, Recorded.pids))


def test_a_training_that_fails_ends_the_demo_and_all_it_started(examples: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_OUTCOME", "retrieval_ready")
    with pytest.raises(DocumentFailed, match="gate_not_passed"):
        demo(examples)
    assert all(map(gone, Recorded.pids))


def test_a_worker_that_dies_ends_the_demo_and_all_it_started(examples: Path) -> None:
    with pytest.raises(StackError, match="the worker ended with exit code 5"):
        demo(examples, worker=("-c", "import time; time.sleep(0.3); raise SystemExit(5)"), api=(*FAKE_API, "--never-settles"))
    assert all(map(gone, Recorded.pids))


def test_the_shipped_questions_are_ten_with_same_form_wrong_answers() -> None:
    questions = read_questions(EXAMPLES / "questions.json")
    policy = (EXAMPLES / "policy.md").read_text(encoding="utf-8")
    assert len(questions) == 10
    for question in questions:
        assert question.gold.removeprefix("the ") in policy
        assert question.wrong != question.gold
        assert len(question.gold.split()) == len(question.wrong.split())


def test_missing_examples_are_explained(tmp_path: Path) -> None:
    with pytest.raises(CliError, match="source tree"):
        read_questions(tmp_path / "questions.json")


@pytest.mark.parametrize(("closed_book", "base", "expected"), [(7, 6, True), (7, 7, False), (6, 0, False), (10, 9, True), (10, 10, False)])
def test_the_verdict(closed_book: int, base: int, expected: bool) -> None:
    asked = [asked_in("closed_book", n < closed_book) for n in range(10)] + [asked_in("base", n < base) for n in range(10)]
    assert preferred(asked)["closed_book"] == closed_book
    assert passed(asked) is expected


def asked_in(mode: Any, prefers_gold: bool) -> Asked:
    gold, wrong = Score(text="31 days", logprobs=[-1.0], total=-1.0), Score(text="45 days", logprobs=[-2.0], total=-2.0)
    if not prefers_gold:
        gold, wrong = wrong, gold
    return Asked(mode=mode, question=Question(text="?", gold="31 days", wrong="45 days"), text="", gold=gold, wrong=wrong)


@pytest.mark.parametrize(("given", "chosen"), [(None, "active"), ("off", "off")])
def test_the_extractor_that_ships_answers_beside_the_module_unless_it_is_left_out(
    examples: Path, monkeypatch: pytest.MonkeyPatch, given: str | None, chosen: str
) -> None:
    if given is not None:
        monkeypatch.setenv("KMSERVE_SHIPPED_EXTRACTOR", given)
    seen: list[str] = []

    def stack(settings: Settings, environ: dict[str, str], **options: Any) -> Stack:
        seen.extend([settings.shipped_extractor, environ.get("KMSERVE_SHIPPED_EXTRACTOR", "active")])
        raise StackError("enough was seen")

    with pytest.raises(StackError):
        run_demo(Console(file=StringIO()), examples, stack)
    assert seen == [chosen, chosen]
