"""The values of retrieval."""

from __future__ import annotations

from dataclasses import dataclass


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

    @property
    def text(self) -> str:
        return PAGE_BREAK.join(page.text for page in self.pages)


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
class Hit:
    """A passage found by the index; `score` is cosine similarity."""

    passage_id: str
    document_id: str
    revision_id: str
    score: float
