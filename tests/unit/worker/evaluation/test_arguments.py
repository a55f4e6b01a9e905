from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from server.errors import InvalidInput
from worker.evaluation import __main__, guard, refusal
from worker.evaluation.arguments import NONE, ending_in_words, parse_arguments

NEEDED = ["--dataset", "quality", "--data", "data", "--out", "out"]


@pytest.mark.parametrize(
    ("words", "extractor"),
    [([], None), (["--extractor", "none"], NONE), (["--extractor", "./none"], Path("none")), (["--extractor", "a/b"], Path("a/b"))],
)
def test_an_extractor_is_a_directory_none_or_left_open(words: list[str], extractor: object) -> None:
    found = parse_arguments([*NEEDED, *words]).extractor
    assert (found, type(found)) == (extractor, type(extractor))


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "stopped; the same command goes on from here"),
        (ValueError("no such row"), "error: no such row", ""),
        (InvalidInput("no such preset"), "error: no such preset", ""),
    ],
)
def test_a_command_ends_in_words(error: BaseException, code: object, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended, ending_in_words():
        raise error
    assert ended.value.code == code
    assert capsys.readouterr().err.strip() == said


def test_what_the_user_cannot_mend_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError), ending_in_words():
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("main", "measure", "words"),
    [
        (__main__.main, "worker.evaluation.run", NEEDED),
        (guard.main, "worker.evaluation.guard_measure", ["--module", "module"]),
        (refusal.main, "worker.evaluation.refusals", NEEDED),
    ],
)
def test_every_command_may_be_stopped(
    main: Callable[[], None], measure: str, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"{measure}.run", stop)
    monkeypatch.setattr("sys.argv", ["command", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 130
    assert "goes on from here" in capsys.readouterr().err
