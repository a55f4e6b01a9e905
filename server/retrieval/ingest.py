"""One revision of a document into the vector index: parse -> passages -> embed -> index. Pure of SQL, jobs and status.

Doing it again replaces what it did before: a passage's id follows from its revision and its place.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from server.errors import EmptyDocument
from server.retrieval.index import VectorIndex
from server.retrieval.parsing import parse
from server.retrieval.passages import SPECIAL_TOKENS, Count, split
from server.retrieval.types import Embedding, ParsedDocument, PassageText, Point

EMBED_BATCH: Final = 16
"""Passages embedded at a time: a question waits for no more than these."""
INDEX_BATCH: Final = 256
_NAMESPACE: Final = uuid.UUID("6f2b7f0e-2a5d-4a43-9f0b-6b6d73657276")


class Stage(StrEnum):
    PARSING = "parsing"
    SPLITTING = "splitting"
    EMBEDDING = "embedding"
    INDEXING = "indexing"


Report = Callable[[Stage, int, int], Awaitable[None]]
"""(stage, done, total), awaited between steps; raises to stop the ingest there."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Of one document."""

    parse_seconds: float
    parse_memory_bytes: int
    max_characters: int
    passage_tokens: int


@dataclass(frozen=True, kw_only=True)
class Source:
    """Whose document it is and where its bytes lie."""

    tenant_id: str
    document_id: str
    revision_id: str
    path: Path
    filename: str | None


@dataclass(frozen=True, kw_only=True)
class Ingested:
    """`passages` by their ids, in reading order; `tokens` of the whole text, by the base model."""

    parsed: ParsedDocument
    passages: dict[str, PassageText]
    tokens: int


class Ingestor:
    """`count_base` counts tokens of the base model (see passages.token_counter)."""

    def __init__(self, *, index: VectorIndex, embedder: Embedding, count_base: Count, limits: Limits) -> None:
        self._index = index
        self._embedder = embedder
        self._count_base = count_base
        self._limits = limits

    async def ingest(self, source: Source, report: Report) -> Ingested:
        """Raises the errors of parsing (see parsing.py) and of the index, and whatever `report` raises."""
        await report(Stage.PARSING, 0, 1)
        parsed = await self._parse(source)
        await report(Stage.SPLITTING, 0, 1)
        passages, tokens = await asyncio.to_thread(self._split, parsed)
        if not passages:
            raise EmptyDocument("the document has no text in it")
        named = {passage_id(source.revision_id, passage.ordinal): passage for passage in passages}
        points = await self._embed(named, report)
        await self._store(source, points, report)
        return Ingested(parsed=parsed, passages=named, tokens=tokens)

    async def forget(self, tenant_id: str, document_id: str, revision_id: str) -> None:
        """Take a revision out of the index again."""
        await self._index.delete_revision(tenant_id, document_id, revision_id)

    async def _parse(self, source: Source) -> ParsedDocument:
        return await parse(
            source.path,
            filename=source.filename,
            seconds=self._limits.parse_seconds,
            memory_bytes=self._limits.parse_memory_bytes,
            max_characters=self._limits.max_characters,
        )

    def _split(self, parsed: ParsedDocument) -> tuple[list[PassageText], int]:
        passages = split(
            parsed,
            base=self._count_base,
            embedder=self._embedder.count,
            passage_tokens=self._limits.passage_tokens,
            embedder_tokens=self._embedder.max_tokens - SPECIAL_TOKENS,
        )
        return passages, self._count_base(parsed.text)

    async def _embed(self, passages: dict[str, PassageText], report: Report) -> list[Point]:
        points: list[Point] = []
        waiting = list(passages.items())
        for start in range(0, len(waiting), EMBED_BATCH):
            await report(Stage.EMBEDDING, start, len(waiting))
            batch = waiting[start : start + EMBED_BATCH]
            vectors = await asyncio.to_thread(self._embedder.encode, [passage.text for _, passage in batch])
            points += [Point(passage_id=name, vector=vector) for (name, _), vector in zip(batch, vectors, strict=True)]
        return points

    async def _store(self, source: Source, points: list[Point], report: Report) -> None:
        await self.forget(source.tenant_id, source.document_id, source.revision_id)
        for start in range(0, len(points), INDEX_BATCH):
            await report(Stage.INDEXING, start, len(points))
            batch = points[start : start + INDEX_BATCH]
            await self._index.upsert(source.tenant_id, source.document_id, source.revision_id, batch)


def passage_id(revision_id: str, ordinal: int) -> str:
    """The same for every run over one revision, so that a repeated ingest overwrites its own points."""
    return str(uuid.uuid5(_NAMESPACE, f"{revision_id}/{ordinal}"))
