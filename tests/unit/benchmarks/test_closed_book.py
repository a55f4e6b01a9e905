from __future__ import annotations

import json
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from kmserve_client.errors import DocumentFailed
from rich.console import Console

from benchmarks import closed_book
from benchmarks.closed_book import MODES, Measured, by_story, options_of, parse_arguments, run, summary
from benchmarks.closed_book_table import print_table
from server.cli_stack import Stack
from tests.support.tiny_fairytaleqa import write_story

TREE = Path(__file__).resolve().parents[3]
FAKE = partial(Stack, api=(str(TREE / "tests" / "support" / "fake_kmserve.py"),), worker=("-c", "import time; time.sleep(600)"))


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_story(tmp_path, "val", "fox", ["A fox ran."], [("What ran?", "a fox", ""), ("Did it?", "yes", "it did")])
    write_story(tmp_path, "val", "hen", ["A hen sat on an egg."], [("Who sat?", "31 days", "a hen")])
    write_story(tmp_path, "val", "ox", ["An ox, which is larger than a hen, stood there."], [("Who?", "an ox", "")])
    (tmp_path / "model").mkdir()
    monkeypatch.setenv("KMSERVE_BASE_MODEL", str(tmp_path / "model"))
    return tmp_path


def arguments(data: Path, *more: str) -> Any:
    return parse_arguments(["--data", str(data), "--stories", "2", "--json", str(data / "out.json"), *more])


def test_every_question_is_asked_in_every_mode(data: Path) -> None:
    measured, details = run(arguments(data), data, Console(file=StringIO()), FAKE)
    assert len(measured) == 3 * len(MODES)
    report = summary(measured)
    assert set(report) == {"stories", "questions", "modes"}
    assert (report["stories"], report["questions"]) == (2, 3)
    assert list(report["modes"]) == list(MODES)
    # the fake's log-likelihoods are of two tokens each
    assert {mode: figures["gold_nll"] for mode, figures in report["modes"].items()} == {
        "base": 4.5,
        "wrong_module": 1.0,
        "closed_book": 1.0,
        "retrieval": 1.5,
        "open_book": 0.5,
    }
    assert report["modes"]["base"]["rouge_l"] == pytest.approx(100 * 2 * 0.5 / 1.5 / 3, abs=0.01)  # "base says 31 days" for "31 days"
    assert details["stories"] == "fox (2 questions), hen (1 questions)"
    assert len(json.loads((data / "answers.json").read_text())) == len(measured)


def test_a_story_without_a_module_ends_the_run(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_OUTCOME", "retrieval_ready")
    with pytest.raises(DocumentFailed, match="gate_not_passed"):
        run(arguments(data), data, Console(file=StringIO()), FAKE)


def test_each_mode_is_asked_for_in_its_own_way() -> None:
    assert options_of("wrong_module", "doc_1", "doc_2", 5) == {"document_id": "doc_2", "mode": "closed_book"}
    assert options_of("closed_book", "doc_1", "doc_2", 5) == {"document_id": "doc_1", "mode": "closed_book"}
    assert options_of("open_book", "doc_1", "doc_2", 5) == {"document_id": "doc_1", "mode": "open_book", "top_k": 5}
    assert options_of("extractor", "doc_1", "doc_2", 5) == {"document_id": "doc_1", "mode": "retrieval", "top_k": 0}
    assert options_of("base", "doc_1", "doc_2", 5) == {"document_id": "doc_1", "mode": "base"}


def test_one_story_is_too_few(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_arguments(["--data", str(data), "--stories", "1", "--json", "x"])
    assert "at least 2" in capsys.readouterr().err


def test_the_table_says_what_closed_book_beats() -> None:
    figures = {"base": 4.0, "wrong_module": 1.0, "closed_book": 2.0}
    measured = [row(mode, story, nll) for mode, nll in figures.items() for story in ("a", "b")]
    output = StringIO()
    print_table(Console(file=output, width=120), {mode: by_story(measured, mode) for mode in figures})
    assert "closed_book is better than base: gold_nll -2.000" in output.getvalue()
    assert "closed_book is NOT better than wrong_module: gold_nll +1.000" in output.getvalue()


def test_a_work_folder_stays_and_a_temporary_one_goes(tmp_path: Path) -> None:
    with closed_book.work_folder(tmp_path / "kept") as kept:
        pass
    with closed_book.work_folder(None) as temporary:
        assert temporary.is_dir()
    assert kept.is_dir()
    assert not temporary.exists()


def row(mode: str, story: str, nll: float) -> Measured:
    return Measured(mode=mode, story=story, question="?", answer="", rouge_l=0.0, gold_nll=nll)
