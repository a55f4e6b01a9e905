"""The rows of the paper's tables by name: what each wears and what its prompt holds. Knows nothing of models or files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

MIXED = "mixed"
"""How the module of a row that names no objective is trained."""


class Owner(StrEnum):
    """Whose module a row wears: the document's that is asked about, or the following document's."""

    OWN = "own"
    OTHER = "other"


class Context(StrEnum):
    """What a prompt holds beside the question. COMPRESSED: the whole document, whose keys and values are then thinned out."""

    NOTHING = "nothing"
    PASSAGES = "passages"
    DOCUMENT = "document"
    COMPRESSED = "compressed"


@dataclass(frozen=True, kw_only=True)
class Row:
    """`objective` is that of the row's knowledge module, None without one; `worn`: it was distilled while wearing the extractor;
    `ones`: the extractor's lora counts as much as the module's in every layer, whatever weights were learned."""

    name: str
    objective: str | None = None
    owner: Owner = Owner.OWN
    extractor: bool = False
    worn: bool = False
    ones: bool = False
    context: Context = Context.NOTHING


@dataclass(frozen=True, kw_only=True)
class Line:
    """A row with the number of passages in its prompts: one line of the table. `passages` is 0 where the row has none."""

    row: Row
    passages: int = 0

    @property
    def label(self) -> str:
        return f"{self.row.name}, k={self.passages}" if self.passages else self.row.name


_CLOSED_BOOK = (
    Row(name="base"),
    Row(name="KM_LM", objective="lm"),
    Row(name="KM_PIT", objective="pit"),
    Row(name="KM_DDCD", objective="ddcd"),
    Row(name="KM_SDCD", objective="sdcd"),
    Row(name="KM_mixed", objective=MIXED),
    Row(name="KE", extractor=True),
    Row(name="KM_other+KE", objective=MIXED, owner=Owner.OTHER, extractor=True),
    Row(name="KM_LM+KE", objective="lm", extractor=True),
    Row(name="KM_DDCD+KE", objective="ddcd", extractor=True),
    Row(name="KM_SDCD+KE", objective="sdcd", extractor=True),
    Row(name="KM_mixed+KE", objective=MIXED, extractor=True),
    Row(name="KM_mixed(worn)+KE", objective=MIXED, extractor=True, worn=True),
    Row(name="KM_mixed+KE(ones)", objective=MIXED, extractor=True, ones=True),
    Row(name="KM_mixed(worn)+KE(ones)", objective=MIXED, extractor=True, worn=True, ones=True),
)
_OPEN_BOOK = (
    Row(name="ICL", context=Context.DOCUMENT),
    Row(name="ICL+KE", context=Context.DOCUMENT, extractor=True),
    Row(name="KV_L2", context=Context.COMPRESSED),
    Row(name="RAG", context=Context.PASSAGES),
    Row(name="RAG+KM", context=Context.PASSAGES, objective=MIXED),
    Row(name="RAG+KE", context=Context.PASSAGES, extractor=True),
    Row(name="RAG+KM+KE", context=Context.PASSAGES, objective=MIXED, extractor=True),
    Row(name="RAG+KM(worn)+KE", context=Context.PASSAGES, objective=MIXED, extractor=True, worn=True),
)
ROWS: Mapping[str, Row] = {row.name: row for row in (*_CLOSED_BOOK, *_OPEN_BOOK)}
ALL = "all"


def lines_of(names: Sequence[str], passages: Sequence[int]) -> list[Line]:
    """The table's lines in the given order; a row with passages has one for each number of them: its own, as `RAG@1:2` says, else
    `passages`. Raises ValueError for no names, unknown ones, and numbers that are none."""
    if not names:
        raise ValueError(f"no rows: name {ALL}, or some of {', '.join(ROWS)}")
    lines: list[Line] = []
    for asked in names:
        name, at, numbers = asked.partition("@")
        if name not in {*ROWS, ALL}:
            raise ValueError(f"unknown row {name!r}: use {ALL}, or some of {', '.join(ROWS)}")
        own = _numbers(asked, numbers) if at else passages
        for row in ROWS.values() if name == ALL else (ROWS[name],):
            lines += [Line(row=row, passages=k) for k in (own if row.context is Context.PASSAGES else (0,))]
    return list(dict.fromkeys(lines))


def _numbers(asked: str, numbers: str) -> list[int]:
    parts = numbers.split(":")
    if not all(part.isdecimal() and int(part) for part in parts):
        raise ValueError(f"row {asked!r} has no numbers of passages behind its @: write them as RAG@1:2")
    return [int(part) for part in parts]
