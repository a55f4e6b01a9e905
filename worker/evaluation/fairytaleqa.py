"""FairytaleQA in its original layout (Xu et al., ACL 2022).

<data>/data-by-train-split/section-stories/<split>/<story>-story.csv      section, text
<data>/data-by-train-split/questions/<split>/<story>-questions.csv        question, answer1..3, answer4..6, ...
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from worker.evaluation.documents import DatasetError, Document, Question, read_csv

LAYOUT = "data-by-train-split"


def load(data: Path, split: str) -> list[Document]:
    """The stories of a split. Raises DatasetError."""
    folder = data / LAYOUT / "section-stories" / split
    paths = sorted(folder.glob("*-story.csv"))
    if not paths:
        raise DatasetError(folder, "holds no stories: is the data FairytaleQA in its original layout, and has it this split?")
    return [_read(path) for path in paths]


def _read(path: Path) -> Document:
    name = path.name.removesuffix("-story.csv")
    questions = path.parents[2] / "questions" / path.parent.name / f"{name}-questions.csv"
    text = "\n\n".join(row["text"].strip() for _, row in read_csv(path, ("section", "text")))
    rows = [row for _, row in read_csv(questions, ("question", "answer1"))]
    return Document(name=name, text=text, questions=tuple(_question(row) for row in rows if row["answer1"].strip()))


def _question(row: Mapping[str, str]) -> Question:
    """answer1 is the first annotator's answer, answer4 the second's, where there is one."""
    gold = row["answer1"].strip()
    second = row.get("answer4", "").strip()
    return Question(text=row["question"].strip(), gold=gold, references=(gold, second) if second else (gold,))
