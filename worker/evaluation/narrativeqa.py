"""NarrativeQA (Kočiský et al., TACL 2018) with its full stories.

<data>/documents.csv      document_id, set, ...
<data>/qaps.csv           document_id, set, question, answer1, answer2, ...
<data>/stories/<document_id>.txt, or where the dataset's own script puts it: <data>/tmp/<document_id>.content
"""

from __future__ import annotations

from pathlib import Path

from server.errors import UndecodableText
from server.retrieval.formats.text import decode
from worker.evaluation.documents import DatasetError, Document, Question, plain, read_csv

PLACES = ("stories/{}.txt", "tmp/{}.content")


def load(data: Path, split: str) -> list[Document]:
    """The stories of a set. Raises DatasetError."""
    listing, pairs = data / "documents.csv", data / "qaps.csv"
    questions: dict[str, list[Question]] = {
        row["document_id"]: [] for _, row in read_csv(listing, ("document_id", "set")) if row["set"] == split
    }
    for line, row in read_csv(pairs, ("document_id", "set", "question", "answer1", "answer2")):
        if row["set"] != split:
            continue
        if row["document_id"] not in questions:
            raise DatasetError(pairs, f"documents.csv has no document {row['document_id']} in the set {split}", line)
        references = tuple(answer for column in ("answer1", "answer2") if (answer := row[column].strip()))
        if references:
            questions[row["document_id"]].append(Question(text=row["question"].strip(), gold=references[0], references=references))
    return [Document(name=name, text=_story(data, name), questions=tuple(asked)) for name, asked in questions.items()]


def _story(data: Path, name: str) -> str:
    paths = [data / place.format(name) for place in PLACES]
    for path in paths:
        if path.is_file():
            try:
                return plain(decode(path.read_bytes()))
            except UndecodableText:
                raise DatasetError(path, "is not text in any known encoding") from None
    raise DatasetError(paths[0], "is not there: put each story's text in it")
