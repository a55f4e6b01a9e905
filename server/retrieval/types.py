"""The values of retrieval, and the one thing it asks of an embedding model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol


@dataclass(frozen=True, kw_only=True)
class Page:
    """One page of parsed text; formats without pages have a single one with number None."""

    number: int | None
    text: str


@dataclass(frozen=True, kw_only=True)
class ParsedDocument:
    """`text` is the pages joined by a blank line; character spans of passages refer to it."""

    media_type: str
    pages: tuple[Page, ...]

    @cached_property
    def text(self) -> str:
        return PAGE_BREAK.join(page.text for page in self.pages)

    @property
    def page_count(self) -> int | None:
        """How many pages the document has, None for a format without pages."""
        return len(self.pages) if self.pages[0].number is not None else None


PAGE_BREAK = "\n\n"


@dataclass(frozen=True, kw_only=True)
class PassageText:
    """A retrieval unit: `text` = document text [char_start, char_end)."""

    ordinal: int
    text: str
    page: int | None
    char_start: int
    char_end: int
    tokens: int


@dataclass(frozen=True, kw_only=True)
class Point:
    """A passage's vector on its way into the index."""

    passage_id: str
    vector: list[float]


@dataclass(frozen=True, kw_only=True)
class Hit:
    """A passage found by the index; `score` is cosine similarity."""

    passage_id: str
    document_id: str
    revision_id: str
    score: float


class Embedding(Protocol):
    """An embedding model. `name` identifies its weights; `max_tokens` is its limit, special tokens included."""

    @property
    def name(self) -> str: ...

    @property
    def dimension(self) -> int: ...

    @property
    def max_tokens(self) -> int: ...

    def count(self, text: str) -> int:
        """Tokens of `text` without special ones."""

    def encode(self, texts: Sequence[str]) -> list[list[float]]:
        """One vector of length 1 for each text; safe to call from several threads."""
