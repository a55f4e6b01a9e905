"""What the demo prints: answers side by side, which answer each mode finds likelier, and the verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from kmserve_client.models import Answer, Mode, Score
from rich.console import Console
from rich.markup import escape
from rich.table import Table

MODES: tuple[Mode, ...] = ("base", "closed_book", "retrieval", "open_book")
NEEDED = 7
HOW_JUDGED = (
    "Each cell: total log-likelihood (mean per token). A mode prefers gold when the gold answer's total is above that of the wrong answer, "
    "which has the same form."
)


@dataclass(frozen=True, kw_only=True)
class Question:
    """`wrong` has the form of `gold`: another number, another name."""

    text: str
    gold: str
    wrong: str


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One question's answer in one mode."""

    mode: Mode
    question: Question
    text: str
    gold: Score
    wrong: Score

    @staticmethod
    def of(mode: Mode, question: Question, answer: Answer) -> Asked:
        assert answer.scores is not None  # they were asked for
        return Asked(mode=mode, question=question, text=answer.answer, gold=answer.scores[0], wrong=answer.scores[1])

    @property
    def prefers_gold(self) -> bool:
        return self.gold.total > self.wrong.total


def preferred(asked: Sequence[Asked]) -> dict[Mode, int]:
    """For how many questions each mode prefers gold."""
    return {mode: sum(each.prefers_gold for each in asked if each.mode == mode) for mode in MODES}


def passed(asked: Sequence[Asked]) -> bool:
    counts = preferred(asked)
    return counts["closed_book"] >= NEEDED and counts["closed_book"] > counts["base"]


def print_answers(output: Console, questions: Sequence[Question], asked: Sequence[Asked]) -> None:
    output.print(f"\n{HOW_JUDGED}\n")
    for number, question in enumerate(questions, start=1):
        table = Table("mode", "answer", "gold", "wrong", "prefers", title_justify="left", box=None, pad_edge=False)
        table.title = f"{number}. {escape(question.text)}\n   gold: {escape(question.gold)}   wrong: {escape(question.wrong)}"
        for each in asked:
            if each.question == question:
                table.add_row(each.mode, escape(" ".join(each.text.split())), _cell(each.gold), _cell(each.wrong), _choice(each))
        output.print(table, "")


def print_summary(output: Console, asked: Sequence[Asked]) -> None:
    counts = preferred(asked)
    total = len(asked) // len(MODES)
    table = Table("mode", "prefers gold", "log-likelihood per token, gold", "wrong")
    for mode in MODES:
        mine = [each for each in asked if each.mode == mode]
        gold, wrong = fmean(each.gold.mean for each in mine), fmean(each.wrong.mean for each in mine)
        table.add_row(mode, f"{counts[mode]} of {total}", f"{gold:.2f}", f"{wrong:.2f}")
    output.print(table)
    verdict = "[green]passed[/]" if passed(asked) else "[red]failed[/]"
    needed = f"closed_book must prefer gold in at least {NEEDED} of {total} and in more than base"
    output.print(f"{verdict}: {needed}; it does in {counts['closed_book']}, base in {counts['base']}")


def print_phases(output: Console, seconds: Mapping[str, float]) -> None:
    table = Table("phase", "seconds", box=None, pad_edge=False)
    for name, value in seconds.items():
        table.add_row(name, f"{value:.1f}")
    table.add_row("all", f"{sum(seconds.values()):.1f}")
    output.print(table)


def _cell(score: Score) -> str:
    return f"{score.total:.2f} ({score.mean:.2f})"


def _choice(asked: Asked) -> str:
    return "[green]gold[/]" if asked.prefers_gold else "[red]wrong[/]"
