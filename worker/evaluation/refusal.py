"""How often answers decline, as extractors are taught to: `python -m worker.evaluation.refusal --extractor DIR ... --rows KE,RAG+KE`.

Every document is asked its own questions, which have answers, and those of the following document, which have none in it. A good row
declines the latter and none of the former.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from rich.console import Console
from rich.table import Table

from server.errors import KmserveError
from worker.evaluation.arguments import parse_arguments
from worker.evaluation.datasets import load_documents
from worker.evaluation.documents import Document
from worker.evaluation.parts import Bar, LoadEmbedder, Retrievers, base_of, packaged_embedder
from worker.evaluation.rows import Line, lines_of
from worker.evaluation.run import setting_of, train_first
from worker.evaluation.runner import Measurement, Setting, evaluate
from worker.extractor.examples import REFUSAL

RESULT = "refusal.json"


@dataclass(frozen=True, kw_only=True)
class Declined:
    """Shares of the questions that a line of the table declined: `own` have an answer in the document, `foreign` have none."""

    row: str
    extractor: str
    own: float
    foreign: float
    questions: int


def declines(answer: str) -> bool:
    """Whether it begins as the stated refusal, whatever the case and what follows."""
    return answer.strip().casefold().startswith(REFUSAL.rstrip(".").casefold())


def refusals(setting: Setting, lines: Sequence[Line], extractor: str) -> list[Declined]:
    """Raises ValueError for fewer than two documents, and what `evaluate` raises."""
    if len(setting.documents) < 2:
        raise ValueError("refusals are measured on at least two documents: each is asked the following one's questions")
    own, foreign = evaluate(setting, lines), evaluate(replace(setting, documents=exchanged(setting.documents)), lines)
    return [
        Declined(row=line.label, extractor=extractor, own=_share(mine), foreign=_share(others), questions=_count(others))
        for line, mine, others in zip(lines, own, foreign, strict=True)
    ]


def exchanged(documents: Sequence[Document]) -> list[Document]:
    """Each with the following one's questions, the last with the first's."""
    return [replace(document, questions=asked.questions) for document, asked in zip(documents, [*documents[1:], documents[0]], strict=True)]


def run(arguments: argparse.Namespace, console: Console, load_embedder: LoadEmbedder = packaged_embedder) -> list[Declined]:
    """Raises ValueError and KmserveError with what the user can mend."""
    lines = lines_of(arguments.rows, arguments.passages)
    documents = load_documents(arguments.dataset, arguments.data, arguments.split, arguments.documents)
    if any(question.options for document in documents for question in document.questions):
        raise ValueError("questions with options have no answers that could decline: use fairytaleqa or narrativeqa")
    with Bar(console) as on_progress:
        base = base_of(arguments, on_progress)
        retrievers = Retrievers(base, arguments, load_embedder)
        setting = setting_of(arguments, base, documents, retrievers, on_progress)
        train_first(arguments, setting, lines, load_embedder)
        measured = refusals(setting, lines, str(arguments.extractor) if arguments.extractor else "none")
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / RESULT).write_text(json.dumps([asdict(each) for each in measured], indent=2))
    table = Table("row", "declined of own", "declined of another document's", "questions")
    for each in measured:
        table.add_row(each.row, f"{each.own:.1%}", f"{each.foreign:.1%}", str(each.questions))
    console.print(table)
    console.print(f"written: {arguments.out / RESULT}", soft_wrap=True)
    return measured


def _share(measurement: Measurement) -> float:
    answers = [each.answer for document in measurement.documents for each in document]
    return sum(map(declines, answers)) / len(answers)


def _count(measurement: Measurement) -> int:
    return sum(len(document) for document in measurement.documents)


def main() -> None:
    try:
        run(parse_arguments(prog="python -m worker.evaluation.refusal", description=__doc__ or ""), Console(highlight=False))
    except (ValueError, KmserveError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
