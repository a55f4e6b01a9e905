"""FairytaleQA in its original layout (Xu et al., ACL 2022): stories, questions, references. Knows nothing of models.

<data>/data-by-train-split/section-stories/<split>/<story>-story.csv      section, text
<data>/data-by-train-split/questions/<split>/<story>-questions.csv        question, answer1..3, answer4..6, ...
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

LAYOUT = "data-by-train-split"


@dataclass(frozen=True, kw_only=True)
class Question:
    """`gold` is answer1 of the first annotator; `references` are answer1 and, where the second annotator gave one, answer4."""

    text: str
    gold: str
    references: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Story:
    name: str
    text: str
    questions: tuple[Question, ...]


def shortest_stories(data: Path, split: str, count: int) -> list[Story]:
    """The `count` stories of a split with the fewest characters, shortest first. Raises ValueError where there are fewer."""
    folder = data / LAYOUT / "section-stories" / split
    paths = sorted(folder.glob("*-story.csv"))
    if len(paths) < count or not paths:
        raise ValueError(f"{folder} holds {len(paths)} stories, {count} are wanted: is --data FairytaleQA in its original layout?")
    stories = sorted((read_story(path) for path in paths), key=lambda story: (len(story.text), story.name))
    return stories[:count]


def read_story(path: Path) -> Story:
    name = path.name.removesuffix("-story.csv")
    questions = path.parents[2] / "questions" / path.parent.name / f"{name}-questions.csv"
    text = "\n\n".join(row["text"].strip() for row in _rows(path))
    return Story(name=name, text=text, questions=tuple(_question(row) for row in _rows(questions) if row["answer1"].strip()))


def _question(row: dict[str, str]) -> Question:
    gold = row["answer1"].strip()
    second = (row.get("answer4") or "").strip()
    return Question(text=row["question"].strip(), gold=gold, references=(gold, second) if second else (gold,))


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as lines:
        return list(csv.DictReader(lines))
