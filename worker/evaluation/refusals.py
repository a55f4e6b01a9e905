"""The measure of `worker.evaluation.refusal`: how often each row declines documents' own questions, and those of another document."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from rich.console import Console
from rich.table import Table

from worker.evaluation.arguments import NONE
from worker.evaluation.checks import require_possible, require_room
from worker.evaluation.datasets import load_documents
from worker.evaluation.documents import Document
from worker.evaluation.output import replaced, require_folder
from worker.evaluation.parts import Bar, LoadEmbedder, Retrievers, base_of, packaged_embedder
from worker.evaluation.rows import Line, lines_of
from worker.evaluation.run import describe, in_words, setting_of, train_first
from worker.evaluation.runner import Measurement, Setting, evaluate
from worker.extractor.examples import REFUSAL

RESULT = "refusal.json"


@dataclass(frozen=True, kw_only=True)
class Declined:
    """Shares of the questions that a line of the table declined: `own` have an answer in the document, `foreign` have none. `extractor` by
    name and digests, `modules`: the digest of the one that was worn, by the document that was asked about."""

    row: str
    extractor: str
    modules: Mapping[str, str]
    own: float
    foreign: float
    questions: int


def declines(answer: str) -> bool:
    """Whether it begins as the stated refusal, whatever the case and what follows."""
    return answer.strip().casefold().startswith(REFUSAL.rstrip(".").casefold())


def refusals(setting: Setting, foreign: Setting, lines: Sequence[Line]) -> list[Declined]:
    """`foreign` has the documents with others' questions. Raises what `evaluate` raises."""
    return [
        Declined(
            row=mine.line.label,
            extractor=in_words(setting.artefacts.extractor) if mine.line.row.extractor else NONE,
            modules=mine.modules,
            own=_share(mine),
            foreign=_share(others),
            questions=_count(others),
        )
        for mine, others in zip(evaluate(setting, lines), evaluate(foreign, lines), strict=True)
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
    if len(documents) < 2:
        raise ValueError("refusals are measured on at least two documents: each is asked the following one's questions")
    require_folder(arguments.out)
    with Bar(console) as on_progress:
        base = base_of(arguments, on_progress)
        setting = setting_of(arguments, base, documents, lines, Retrievers(base, arguments, load_embedder), on_progress)
        foreign = replace(setting, documents=exchanged(documents))
        require_possible(setting, lines)
        require_room(foreign, lines)
        described = describe(arguments, setting, lines)
        train_first(arguments, setting, lines, load_embedder)
        measured = refusals(setting, foreign, lines)
    with replaced(arguments.out / RESULT) as file:
        file.write_text(json.dumps({"setting": described, "rows": [asdict(each) for each in measured]}, indent=2), encoding="utf-8")
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
