"""What every dataset gives: documents with their text, questions with their references. Knows no format and no models."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from server.retrieval.formats.html import html_to_text

_MARKUP = re.compile(r"<(?:html|body|p|br|div|pre|h[1-6])\b[^<>]*>", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Question:
    """`gold` is the answer whose likelihood is measured, `references` are those that a generated answer is compared with.

    A multiple-choice question has `options` and `label`, the index of the right one; `difficult`: one of the dataset's hard ones.
    """

    text: str
    gold: str
    references: tuple[str, ...]
    options: tuple[str, ...] = ()
    label: int | None = None
    difficult: bool = False


@dataclass(frozen=True, kw_only=True)
class Document:
    name: str
    text: str
    questions: tuple[Question, ...]


class DatasetError(ValueError):
    """A dataset's file is not there or not as its format says; the message names the file and, where there is one, the line."""

    def __init__(self, path: Path, problem: str, line: int | None = None) -> None:
        super().__init__(f"{path}, line {line}: {problem}" if line is not None else f"{path}: {problem}")


def shortest(documents: Sequence[Document], count: int | None) -> list[Document]:
    """The `count` documents with the fewest characters, or all, shortest first."""
    return sorted(documents, key=lambda document: (len(document.text), document.name))[:count]


def plain(text: str) -> str:
    """A text as it is read: HTML without its markup, anything else as it is."""
    return html_to_text(text).strip() if _MARKUP.search(text) else text.strip()


def read_text(path: Path) -> str:
    """A text file as it is, line ends included. Raises DatasetError."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return file.read()
    except OSError as error:
        raise DatasetError(path, f"cannot be read ({(error.strerror or 'error').lower()})") from None
    except UnicodeDecodeError:
        raise DatasetError(path, "is not UTF-8") from None


def read_csv(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """(line on which it ends, row) of a file with a heading that holds at least `columns`. Raises DatasetError."""
    reader = csv.reader(read_text(path).splitlines(keepends=True), strict=True)
    try:
        heading = next(reader, [])
        if missing := [column for column in columns if column not in heading]:
            raise DatasetError(path, f"the heading lacks {', '.join(missing)}", 1)
        for row in reader:
            if row and len(row) != len(heading):
                raise DatasetError(path, f"has {len(row)} fields, the heading {len(heading)}", reader.line_num)
            if row:
                yield reader.line_num, dict(zip(heading, row, strict=True))
    except csv.Error as error:
        raise DatasetError(path, f"is no CSV: {error}", reader.line_num) from None
