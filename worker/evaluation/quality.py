"""QuALITY v1.0.1 (Pang et al., NAACL 2022): JSON lines, several of which may ask about one article.

{"article_id", "article": HTML or text, "questions": [{"question", "options": [4], "gold_label": 1..4, "difficult": 0 or 1}]}
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from worker.evaluation.documents import DatasetError, Document, Question, plain, read_text

OPTIONS = 4


def load(data: Path, split: str) -> list[Document]:
    """The articles of one file, or of the file of a split in a folder. Raises DatasetError."""
    path = data if data.is_file() else _find(data, split)
    documents: dict[str, Document] = {}
    for document in _documents(path):
        first = documents.get(document.name, document)
        questions = document.questions if first is document else (*first.questions, *document.questions)
        documents[document.name] = Document(name=first.name, text=first.text, questions=questions)
    return list(documents.values())


def _find(folder: Path, split: str) -> Path:
    """The stripped file before the one with HTML."""
    found = [*sorted(folder.glob(f"QuALITY*.htmlstripped.{split}")), *sorted(folder.glob(f"QuALITY*.{split}"))]
    if not found:
        raise DatasetError(folder, f"holds no file QuALITY.v1.0.1.htmlstripped.{split} and none QuALITY.v1.0.1.{split}")
    return found[0]


def _documents(path: Path) -> Iterator[Document]:
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            item = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DatasetError(path, f"is no JSON: {error}", number) from None
        try:
            yield _document(item, number)
        except (KeyError, TypeError, ValueError) as error:
            problem = f"lacks {error}" if isinstance(error, KeyError) else str(error)
            raise DatasetError(path, problem, number) from None


def _document(item: Any, number: int) -> Document:
    if not isinstance(item, dict):
        raise TypeError("is not an object")
    article, questions = item["article"], item["questions"]
    if not isinstance(article, str) or not isinstance(questions, list):
        raise TypeError("`article` must be a text and `questions` a list")
    return Document(name=str(item.get("article_id", f"line-{number}")), text=plain(article), questions=tuple(map(_question, questions)))


def _question(item: Any) -> Question:
    if not isinstance(item, Mapping):
        raise TypeError("a question is not an object")
    text, options, label = item["question"], item["options"], item["gold_label"]
    if not isinstance(text, str) or not isinstance(options, list) or not all(isinstance(option, str) for option in options):
        raise TypeError("a `question` must be a text and its `options` texts")
    if len(options) != OPTIONS or not isinstance(label, int) or not 1 <= label <= OPTIONS:
        raise ValueError(f"a question must have {OPTIONS} options and a `gold_label` from 1 to {OPTIONS}")
    choices = tuple(option.strip() for option in options)
    if not all(choices):
        raise ValueError("an option is empty")
    gold = choices[label - 1]
    return Question(
        text=text.strip(), gold=gold, references=(gold,), options=choices, label=label - 1, difficult=bool(item.get("difficult", False))
    )
