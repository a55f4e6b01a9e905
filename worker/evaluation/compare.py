"""Paired tests between any lines of finished tables.

    python -m worker.evaluation.compare TABLE "KM_SDCD+KE > KE" "RAG+KM+KE, k=1 > RAG+KE, k=1"

TABLE is a table.json, or several with commas: lines of tables over the same questions are compared as if they were of one; the lines of
NAME=TABLE have NAME before theirs, as `NAME KE`, for tables whose rows have equal names and other extractors or recipes. `A > B` says
that A is expected to be better; what is printed is A - B with its 95 % interval and the two-sided p of flipping the signs of questions, and
of whole documents, for every measure that both have, or for `--measures`. Computes nothing but that.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from worker.evaluation.summary import Comparison, compare

SMALLER_IS_BETTER = frozenset({"gold_nll", "gold_nll_eos"})
SAME = ("dataset", "documents", "base", "passages")
"""What tables must have in common for their lines to be compared."""
Values = dict[str, list[list[float]]]
"""Of each measure, by document and question."""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """`better`: the first line is, by this measure, as it was expected to be."""

    first: str
    second: str
    measure: str
    means: tuple[float, float]
    comparison: Comparison
    better: bool


def lines_of(tables: Sequence[str]) -> dict[str, Values]:
    """By label, as the table prints it, behind the table's name where it has one. Raises ValueError for what is no table with values."""
    found: dict[str, Values] = {}
    setting: dict[str, str | None] = {}
    for name, path in map(_named, tables):
        try:
            report = json.loads(path.read_text(encoding="utf-8"))
            about = {key: report["setting"].get(key) for key in SAME}
            lines = {
                name + (f"{line['row']}, k={line['passages']}" if line["passages"] else line["row"]): line["values"]
                for line in report["lines"]
            }
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is no table.json of an evaluation with the values of its questions") from error
        for key, value in about.items():
            if value != setting.setdefault(key, value):
                raise ValueError(f"{path} is about another {key} than the tables before it: {value}, not {setting[key]}")
        if twice := [label for label, values in lines.items() if found.get(label, values) != values]:
            raise ValueError(f"{path} has a line {twice[0]} that is in a table before it, with other values: give one of the two a name")
        found |= lines
    return found


def _named(table: str) -> tuple[str, Path]:
    """("NAME ", path), or ("", path): a path may hold a = itself."""
    name, given, path = table.partition("=")
    return (f"{name} ", Path(path)) if given and "/" not in name and not Path(table).exists() else ("", Path(table))


def compared(lines: dict[str, Values], asked: str, measures: Sequence[str] = (), seed: int = 0) -> list[Compared]:
    """`asked` is "A > B". Raises ValueError for unknown lines, or lines over other questions."""
    first, _, second = (part.strip() for part in asked.partition(">"))
    for label in (first, second):
        if label not in lines:
            raise ValueError(f"{label or asked} is no line of the tables: write A > B with two of {', '.join(lines)}")
    mine, other = lines[first], lines[second]
    results = []
    for measure in measures or [name for name in mine if name in other] or mine:
        if measure not in mine or [len(story) for story in mine[measure]] != [len(story) for story in other.get(measure, [])]:
            raise ValueError(f"{first} and {second} have no {measure} of the same questions")
        comparison = compare(mine[measure], other[measure], seed)
        away = comparison.difference.mean
        means = (_mean(mine[measure]), _mean(other[measure]))
        better = away < 0 if measure in SMALLER_IS_BETTER else away > 0
        results.append(Compared(first=first, second=second, measure=measure, means=means, comparison=comparison, better=better))
    return results


def _mean(stories: Sequence[Sequence[float]]) -> float:
    return sum(map(sum, stories)) / sum(map(len, stories))


def run(arguments: argparse.Namespace, console: Console) -> list[Compared]:
    lines = lines_of(arguments.table.split(","))
    results = [each for asked in arguments.asked for each in compared(lines, asked, arguments.measures)]
    table = Table("measure", "expected better", "", "than", "", "difference (95 %)", "p", "p by document", "holds")
    for each in results:
        apart = each.comparison.difference
        figures = (
            f"{each.means[0]:.3f}",
            each.second,
            f"{each.means[1]:.3f}",
            f"{apart.mean:+.3f} ({apart.low:+.3f} to {apart.high:+.3f})",
        )
        table.add_row(each.measure, each.first, *figures, *_tests(each.comparison), "yes" if each.better else "no")
    console.print(table)
    return results


def _tests(comparison: Comparison) -> tuple[str, str]:
    return f"{comparison.p:.4f}", f"{comparison.p_documents:.4f}"


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m worker.evaluation.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", metavar="TABLE", help="a table.json or NAME=table.json, or several with commas")
    parser.add_argument("asked", nargs="+", metavar="A > B", help="two lines, the one that should be better first")
    parser.add_argument(
        "--measures", type=lambda text: text.split(","), default=[], help="names with commas (default: all that both lines have)"
    )
    return parser.parse_args(argv)


def main() -> None:
    try:
        run(parse_arguments(), Console(highlight=False, width=None if sys.stdout.isatty() else 160))
    except ValueError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
