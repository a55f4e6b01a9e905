"""`python -m benchmarks.training`: what is wrong is said before its twenty minutes."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.training.__main__ import _arguments, _parts, main


def test_a_report_that_could_not_be_written_is_not_measured(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match="cannot be made"):
        main(["--json", str(tmp_path / "file" / "report.json"), "--base", str(tmp_path / "absent")])


def test_a_base_that_is_not_there_is_said_in_words(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="error: "):
        main(["--json", str(tmp_path / "report.json"), "--base", str(tmp_path / "absent"), "--models-dir", str(tmp_path)])


def test_what_is_exact_is_compared_with_the_loops() -> None:
    assert _parts(_arguments(["--json", "out", "--parts", "exact"])) == {"loops", "exact"}
    assert _parts(_arguments(["--json", "out", "--parts", "one-page"])) == {"one-page"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--parts", "all"], "all is none of loops, exact, one-page, long"),
        (["--steps", "4"], "--steps must be at least 5"),
        (["--threads", "0"], "'0' is no whole number from 1 on"),
    ],
)
def test_arguments_that_are_none_are_refused(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        _arguments(["--json", "out", *words])
    assert said in capsys.readouterr().err
