"""FairytaleQA's original layout in miniature."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

COLUMNS = ("question_id", "local-or-sum", "cor_section", "attribute1", "question", "ex-or-im1", "answer1", "answer2", "answer3", "answer4")


def write_story(
    data: Path, split: str, name: str, sections: Sequence[str], questions: Iterable[tuple[str, str, str]], encoding: str = "utf-8"
) -> None:
    """`questions` are (question, answer1, answer4)."""
    root = data / "data-by-train-split"
    story_rows = [[str(number), text] for number, text in enumerate(sections, start=1)]
    _write(root / "section-stories" / split / f"{name}-story.csv", ("section", "text"), story_rows, encoding)
    rows = [
        [str(n), "local", "1", "action", text, "explicit", first, "", "", second]
        for n, (text, first, second) in enumerate(questions, start=1)
    ]
    _write(root / "questions" / split / f"{name}-questions.csv", COLUMNS, rows, encoding)


def _write(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]], encoding: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding=encoding, newline="") as file:
        csv.writer(file).writerows([header, *rows])
