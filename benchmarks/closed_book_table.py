"""The closed-book table for people: figures with intervals, and whether the module beats what it must beat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from rich.console import Console
from rich.table import Table

from worker.evaluation.measures import difference, interval, question_mean

RIVALS = ("base", "wrong_module")
"""A module knows its story only if it beats the base model and another story's module."""


class Figures(Protocol):
    @property
    def rouge_l(self) -> float: ...

    @property
    def gold_nll(self) -> float: ...


ByStory = Mapping[str, Sequence[Figures]]


def print_table(console: Console, modes: Mapping[str, ByStory]) -> None:
    table = Table("mode", "rouge_l", "gold_nll", "95 % of gold_nll")
    for mode, stories in modes.items():
        nll = _nll(stories)
        low, high = interval(nll)
        rouge = question_mean([[each.rouge_l for each in story] for story in stories.values()])
        table.add_row(mode, f"{rouge:.1f}", f"{question_mean(nll):.3f}", f"{low:.3f} to {high:.3f}")
    console.print(table)
    for rival in RIVALS:
        console.print(_comparison(modes, rival))


def _comparison(modes: Mapping[str, ByStory], rival: str) -> str:
    paired = difference(_nll(modes["closed_book"]), _nll(modes[rival]))
    low, high = interval(paired)
    mean = question_mean(paired)
    verdict = "better than" if mean < 0 else "NOT better than"
    return f"closed_book is {verdict} {rival}: gold_nll {mean:+.3f} (95 %: {low:+.3f} to {high:+.3f})"


def _nll(stories: ByStory) -> list[list[float]]:
    return [[each.gold_nll for each in story] for story in stories.values()]
