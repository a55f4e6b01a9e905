from __future__ import annotations

import csv
import json
from io import StringIO
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from worker.evaluation.figure import COLOURS, curves_of, draw_figure, powers_of_two, ticks
from worker.evaluation.report import print_table, to_csv, to_markdown, write_report
from worker.evaluation.rows import lines_of
from worker.evaluation.runner import Measured, Measurement
from worker.evaluation.summary import Summary, summarise

SETTING = {"dataset": "fairytaleqa", "seed": 0}


def measurements() -> list[Measurement]:
    """Scores rise with the number of passages."""
    found = []
    for number, line in enumerate(lines_of(["base", "RAG"], [1, 2, 4])):
        values = {"rouge_l": 10.0 * (number + 1), "gold_nll": 4.0 - number, "gold_nll_eos": 3.5 - number}
        questions = [
            Measured(document="fox", question=f"q{q}", answer=f"a {number}", prompt_tokens=50 * 2**number, values=values) for q in range(2)
        ]
        found.append(Measurement(line=line, documents=(tuple(questions),)))
    return found


@pytest.fixture
def summaries() -> list[Summary]:
    return list(summarise(measurements()))


def test_the_terminals_table_has_every_line_and_its_tests(summaries: list[Summary]) -> None:
    output = StringIO()
    print_table(Console(file=output, width=200), summaries)
    text = output.getvalue()
    assert [label for label in ("base", "RAG, k=1", "RAG, k=4", "20.0 (20.0 to 20.0)", "p, rouge_l") if label not in text] == []


def test_csv_holds_means_intervals_and_differences(summaries: list[Summary]) -> None:
    rows = list(csv.DictReader(StringIO(to_csv(summaries))))
    assert [(row["row"], row["passages"]) for row in rows] == [("base", "0"), ("RAG", "1"), ("RAG", "2"), ("RAG", "4")]
    assert (rows[0]["rouge_l"], rows[0]["rouge_l_difference"], rows[0]["rouge_l_p"]) == ("10.0000", "", "")
    assert (rows[1]["gold_nll_low"], rows[1]["gold_nll_difference"]) == ("3.0000", "-1.0000")


def test_markdown_states_the_setting_above_a_table(summaries: list[Summary]) -> None:
    lines = to_markdown(SETTING, summaries).splitlines()
    assert lines[:3] == ["- dataset: fairytaleqa", "- seed: 0", ""]
    assert len({line.count("|") for line in lines[3:]}) == 1
    assert lines[5].startswith("| base | 50 | 10.0 (10.0 to 10.0) | 4.000 (4.000 to 4.000)")


def test_files_are_written_anew(tmp_path: Path, summaries: list[Summary]) -> None:
    for _ in range(2):
        paths = write_report(tmp_path, SETTING, summaries)
    assert [path.name for path in paths] == ["table.json", "table.csv", "table.md", "questions.jsonl", "figure1.png"]
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    table = json.loads(paths[0].read_text())
    assert (table["setting"], table["complete"], len(table["lines"])) == (SETTING, True, 4)
    questions = [json.loads(line) for line in paths[3].read_text().splitlines()]
    assert len(questions) == 8
    assert (questions[0]["row"], questions[0]["document"], questions[0]["values"]["rouge_l"]) == ("base", "fox", 10.0)


def test_files_of_some_of_the_lines_say_so(tmp_path: Path, summaries: list[Summary]) -> None:
    table, _, markdown, *_ = write_report(tmp_path, SETTING, summaries[:2], complete=False)
    report = json.loads(table.read_text())
    assert (report["complete"], [line["row"] for line in report["lines"]]) == (False, ["base", "RAG"])
    assert "- complete: no" in markdown.read_text()
    assert "complete" not in write_report(tmp_path, SETTING, summaries)[2].read_text()


def test_a_file_that_cannot_be_written_leaves_the_one_before(tmp_path: Path, summaries: list[Summary]) -> None:
    table = write_report(tmp_path, SETTING, summaries[:1])[0]
    before = table.read_text()
    (tmp_path / "table.json.part").mkdir()
    with pytest.raises(IsADirectoryError):
        write_report(tmp_path, SETTING, summaries)
    assert table.read_text() == before


def test_recipes_are_in_the_json_alone(tmp_path: Path, summaries: list[Summary]) -> None:
    setting = {**SETTING, "recipes": {"mixed": {"rank": 16}}}
    table, _, markdown, *_ = write_report(tmp_path, setting, summaries)
    assert json.loads(table.read_text())["setting"] == setting
    assert "rank" not in markdown.read_text()


def test_a_row_with_passages_is_a_curve_and_any_other_a_point(summaries: list[Summary]) -> None:
    base, rag = curves_of(summaries, "rouge_l")
    assert (base.name, base.points) == ("base", ((50.0, 10.0),))
    assert (rag.name, rag.points) == ("RAG", ((100.0, 20.0), (200.0, 30.0), (400.0, 40.0)))


def test_the_figure_is_an_image_with_every_rows_colour(tmp_path: Path, summaries: list[Summary]) -> None:
    draw_figure(tmp_path / "figure1.png", summaries)
    with Image.open(tmp_path / "figure1.png") as image:
        found = {colour for _, colour in image.convert("RGB").getcolors(image.width * image.height) or ()}
    assert {tuple(bytes.fromhex(colour[1:])) for colour in COLOURS[:2]} <= found


def test_a_figure_of_one_point_has_axes_too(tmp_path: Path, summaries: list[Summary]) -> None:
    draw_figure(tmp_path / "figure1.png", summaries[:1])
    assert (tmp_path / "figure1.png").stat().st_size > 1000


def test_ticks_are_round_and_span_the_values() -> None:
    assert ticks(12.0, 47.0) == [10.0, 15.0, 20.0, 25.0, 30.0, 35.0, 40.0, 45.0, 50.0]
    assert ticks(0.0, 1.0, most=5) == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert len(ticks(5.0, 5.0)) >= 2
    assert powers_of_two(50, 400) == [32.0, 64.0, 128.0, 256.0, 512.0]
    assert powers_of_two(64, 64) == [64.0, 128.0]
