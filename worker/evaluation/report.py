"""The table for people and programs: on the terminal, and as table.json, table.csv, table.md, questions.jsonl and figure1.png in a folder.

The files are written anew with every line that is done, each in one step: a run that is stopped leaves whole files of the lines it had.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from worker.evaluation.figure import draw_figure
from worker.evaluation.output import replaced
from worker.evaluation.summary import Estimate, Summary, as_json, main_measure

FIGURE = "figure1.png"
DECIMALS = {"rouge_l": 1, "accuracy": 1, "accuracy_hard": 1, "letter": 1, "gold_nll": 3, "gold_nll_eos": 3}


def print_table(console: Console, summaries: Sequence[Summary]) -> None:
    table = Table(*_heading(summaries))
    for cells in _cells(summaries):
        table.add_row(*cells)
    console.print(table)


def write_report(folder: Path, setting: Mapping[str, Any], summaries: Sequence[Summary], *, complete: bool = True) -> list[Path]:
    """The files in `folder`, which must be there. `complete`: no further line is to come."""
    texts = {
        "table.json": to_json(setting, summaries, complete=complete),
        "table.csv": to_csv(summaries),
        "table.md": to_markdown(setting, summaries, complete=complete),
        "questions.jsonl": "".join(f"{json.dumps(each)}\n" for each in _questions(summaries)),
    }
    for name, text in texts.items():
        with replaced(folder / name) as file:
            file.write_text(text, encoding="utf-8")
    with replaced(folder / FIGURE) as file:
        draw_figure(file, summaries)
    return [folder / name for name in (*texts, FIGURE)]


def to_json(setting: Mapping[str, Any], summaries: Sequence[Summary], *, complete: bool = True) -> str:
    """A line of the file for each of the table: with its values, they are long."""
    lines = ",\n".join(json.dumps(line) for line in as_json(summaries))
    return f'{{"setting": {json.dumps(setting, indent=2)},\n"complete": {json.dumps(complete)},\n"lines": [\n{lines}\n]}}\n'


def to_csv(summaries: Sequence[Summary]) -> str:
    """A row a line; of each measure its mean, interval, and difference from the line before with its p-value."""
    names = list(summaries[0].measures)
    heading = [f"{name}{suffix}" for name in names for suffix in ("", "_low", "_high", "_difference", "_p")]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["row", "passages", "prompt_tokens", *heading])
    for summary in summaries:
        figures: list[str] = []
        for name in names:
            estimate, compared = summary.measures[name], summary.against_previous.get(name)
            figures += [f"{value:.4f}" for value in (estimate.mean, estimate.low, estimate.high)]
            figures += [f"{compared.difference.mean:.4f}", f"{compared.p:.5f}"] if compared else ["", ""]
        writer.writerow([summary.line.row.name, summary.line.passages, f"{summary.prompt_tokens:.1f}", *figures])
    return file.getvalue()


def to_markdown(setting: Mapping[str, Any], summaries: Sequence[Summary], *, complete: bool = True) -> str:
    """Without the setting's recipes, which table.json has."""
    heading = _heading(summaries)
    lines = [f"- {name}: {value}" for name, value in setting.items() if not isinstance(value, Mapping)]
    lines += [] if complete else ["- complete: no, further rows were to come"]
    lines += ["", _row(heading), _row(["---"] * len(heading)), *(_row(cells) for cells in _cells(summaries))]
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _heading(summaries: Sequence[Summary]) -> list[str]:
    names = list(summaries[0].measures)
    return ["row", "prompt tokens", *(f"{name} (95 %)" for name in names), *(f"p, {name}" for name in _tested(names))]


def _cells(summaries: Sequence[Summary]) -> list[list[str]]:
    rows: list[list[str]] = []
    for summary in summaries:
        figures = [_figure(name, estimate) for name, estimate in summary.measures.items()]
        compared = summary.against_previous
        tests = [f"{compared[name].p:.3f}" if name in compared else "" for name in _tested(list(summary.measures))]
        rows.append([summary.line.label, f"{summary.prompt_tokens:.0f}", *figures, *tests])
    return rows


def _tested(names: Sequence[str]) -> list[str]:
    """The measures whose difference from the line before is tested in the table for people; files have all."""
    return [main_measure(names), "gold_nll"]


def _figure(name: str, estimate: Estimate) -> str:
    decimals = DECIMALS[name]
    return f"{estimate.mean:.{decimals}f} ({estimate.low:.{decimals}f} to {estimate.high:.{decimals}f})"


def _questions(summaries: Sequence[Summary]) -> list[dict[str, Any]]:
    return [
        {"row": summary.line.row.name, "passages": summary.line.passages, **asdict(each)}
        for summary in summaries
        for document in summary.measurement.documents
        for each in document
    ]
