"""Any two lines of finished tables against each other."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from worker.evaluation.compare import compared, lines_of, parse_arguments, run
from worker.evaluation.report import write_report
from worker.evaluation.rows import ROWS, Line
from worker.evaluation.runner import Measured, Measurement
from worker.evaluation.summary import summarise


def measurement(line: Line, *documents: tuple[float, ...]) -> Measurement:
    """gold_nll is a tenth of the score."""
    found = [
        tuple(
            Measured(document=f"d{n}", question=f"q{q}", answer="", prompt_tokens=10, values={"rouge_l": value, "gold_nll": value / 10})
            for q, value in enumerate(values)
        )
        for n, values in enumerate(documents)
    ]
    return Measurement(line=line, documents=tuple(found))


def written(folder: Path, lines: list[Measurement]) -> Path:
    """Their table.json."""
    folder.mkdir()
    return write_report(folder, {"seed": 0}, list(summarise(lines)))[0]


@pytest.fixture
def tables(tmp_path: Path) -> list[str]:
    """Two tables over the same three questions, and one over others."""
    one = [measurement(Line(row=ROWS["base"]), (10.0, 20.0), (30.0,)), measurement(Line(row=ROWS["KE"]), (15.0, 25.0), (35.0,))]
    two = [measurement(Line(row=ROWS["RAG"], passages=4), (20.0, 40.0), (60.0,))]
    other = [measurement(Line(row=ROWS["ICL"]), (1.0,), (2.0,))]
    for name, lines in (("one", one), ("two", two), ("other", other)):
        written(tmp_path / name, lines)
    return [str(tmp_path / name / "table.json") for name in ("one", "two", "other")]


def test_lines_of_several_tables_are_compared_question_by_question(tables: list[str]) -> None:
    lines = lines_of(tables)
    assert list(lines) == ["base", "KE", "RAG, k=4", "ICL"]
    rouge, nll = compared(lines, "RAG, k=4 > base")
    assert (rouge.measure, rouge.means, rouge.comparison.difference.mean, rouge.better) == ("rouge_l", (40.0, 20.0), 20.0, True)
    assert (nll.measure, nll.better) == ("gold_nll", False)
    assert [each.measure for each in compared(lines, "KE > base", ["gold_nll"])] == ["gold_nll"]


def test_a_line_of_two_tables_must_be_the_same(tables: list[str], tmp_path: Path) -> None:
    same = [measurement(Line(row=ROWS["base"]), (10.0, 20.0), (30.0,)), measurement(Line(row=ROWS["ICL"]), (1.0, 2.0), (3.0,))]
    written(tmp_path / "same", same)
    assert list(lines_of([tables[0], str(tmp_path / "same" / "table.json")])) == ["base", "KE", "ICL"]
    changed = [measurement(Line(row=ROWS["base"]), (10.0, 20.0), (31.0,))]
    written(tmp_path / "changed", changed)
    with pytest.raises(ValueError, match="has a line base that is in a table before it"):
        lines_of([tables[0], str(tmp_path / "changed" / "table.json")])
    named = lines_of([tables[0], f"new={tmp_path / 'changed' / 'table.json'}"])
    assert list(named) == ["base", "KE", "new base"]
    assert compared(named, "new base > base", ["rouge_l"])[0].means == pytest.approx((61 / 3, 20.0))


@pytest.mark.parametrize("what", ["dataset", "documents", "base", "passages"])
def test_tables_about_something_else_are_not_compared(tables: list[str], what: str) -> None:
    report = json.loads(Path(tables[1]).read_text())
    report["setting"][what] = "another"
    Path(tables[1]).write_text(json.dumps(report))
    with pytest.raises(ValueError, match=f"is about another {what}"):
        lines_of(tables[:2])


def test_what_cannot_be_compared_is_said(tables: list[str], tmp_path: Path) -> None:
    lines = lines_of(tables)
    for asked, message in (("base", "no line"), ("base > nothing", "nothing is no line"), ("base > ICL", "same questions")):
        with pytest.raises(ValueError, match=message):
            compared(lines, asked)
    with pytest.raises(ValueError, match="same questions"):
        compared(lines, "base > KE", ["accuracy"])
    (tmp_path / "broken.json").write_text("{}")
    for path in (tmp_path / "broken.json", tmp_path / "absent.json"):
        with pytest.raises(ValueError, match=r"no table\.json"):
            lines_of([str(path)])


def test_a_table_of_an_earlier_release_is_compared_by_what_both_have(tables: list[str]) -> None:
    """It says neither `complete` nor `recipes`, and has fewer measures."""
    old, new = Path(tables[0]), Path(tables[1])
    report = json.loads(old.read_text())
    del report["complete"]
    for line in report["lines"]:
        del line["values"]["gold_nll"]
    old.write_text(json.dumps(report))
    changed = json.loads(new.read_text())
    changed["setting"]["recipes"] = {"mixed": {"rank": 16}}
    new.write_text(json.dumps(changed))
    assert [each.measure for each in compared(lines_of(tables[:2]), "RAG, k=4 > base")] == ["rouge_l"]


def test_tables_of_the_documentation_are_read() -> None:
    results = Path(__file__).resolve().parents[4] / "docs/results"
    first, second = (str(results / name) for name in ("eight-stories.json", "eight-stories-reader.json"))
    lines = lines_of([first, f"reader={second}"])
    label = next(label for label in lines if label in {name.removeprefix("reader ") for name in lines if name.startswith("reader ")})
    assert {each.measure for each in compared(lines, f"reader {label} > {label}")} == {"rouge_l", "gold_nll", "gold_nll_eos"}


def test_the_command_prints_a_line_a_measure(tables: list[str]) -> None:
    output = StringIO()
    words = [f"{tables[0]},{tables[1]}", "KE > base", "RAG, k=4 > KE", "--measures", "rouge_l"]
    results = run(parse_arguments(words), Console(file=output, width=200))
    assert len(results) == 2
    assert "+5.000 (+5.000 to +5.000)" in output.getvalue()
    assert "0.5000" in output.getvalue(), "the p of two documents"
