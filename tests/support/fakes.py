"""What requests are answered with in tests: an engine that says what it is told to, an index in memory, a bell that counts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from server.engine.request import ArtefactRef, Delta, EngineRequest, FinishReason, Score, Tier
from server.errors import KmserveError
from server.retrieval.types import Hit, Point


@dataclass(kw_only=True)
class FakeEngine:
    """Answers `pieces`, each text scored with `logprob` per character. `error` is raised for the first piece, `module_error`
    for that of a request with a module, `late_error` for the last one; `gate` holds the pieces after the first until it is set;
    `before` runs first of all."""

    pieces: tuple[str, ...] = ("31", " days")
    logprob: float = -0.5
    finish: FinishReason = FinishReason.STOP
    error: Exception | None = None
    module_error: Exception | None = None
    late_error: Exception | None = None
    gate: asyncio.Event | None = None
    before: Callable[[], Awaitable[None]] | None = None
    requests: list[EngineRequest] = field(default_factory=list)
    scored: list[tuple[EngineRequest, tuple[str, ...]]] = field(default_factory=list)
    prefetched: list[ArtefactRef] = field(default_factory=list)
    held: dict[Path, Tier] = field(default_factory=dict)
    cancelled: list[str] = field(default_factory=list)
    evicted: list[tuple[Path, KmserveError]] = field(default_factory=list)
    forgotten: list[str] = field(default_factory=list)
    closed: int = 0
    drained: bool = False

    async def submit(self, request: EngineRequest) -> AsyncGenerator[Delta, None]:
        self.requests.append(request)
        if self.before is not None:
            await self.before()
        try:
            if self.error is not None:
                raise self.error
            if self.module_error is not None and request.module is not None:
                raise self.module_error
            for number, piece in enumerate(self.pieces):
                if number and self.gate is not None:
                    await self.gate.wait()
                last = number == len(self.pieces) - 1
                if last and self.late_error is not None:
                    raise self.late_error
                yield Delta(
                    text=piece,
                    token_ids=(number,),
                    finish_reason=self.finish if last else None,
                    prompt_tokens=len(request.prompt),
                    completion_tokens=number + 1,
                )
        finally:
            self.closed += 1

    async def score(self, request: EngineRequest, continuations: Sequence[str]) -> list[Score]:
        if self.error is not None:
            raise self.error
        self.scored.append((request, tuple(continuations)))
        return [Score(text=text, token_ids=tuple(range(len(text))), logprobs=(self.logprob,) * len(text)) for text in continuations]

    def cancel(self, request_id: str) -> None:
        self.cancelled.append(request_id)

    def prefetch(self, artefact: ArtefactRef) -> None:
        self.prefetched.append(artefact)

    def evict(self, directory: Path, error: KmserveError) -> None:
        self.evicted.append((directory, error))

    def forget(self, tenant: str) -> None:
        self.forgotten.append(tenant)

    def stats(self) -> dict[str, float]:
        return {"steps": float(len(self.requests))}

    def residency(self) -> dict[Path, Tier]:
        return self.held

    async def drain(self) -> None:
        self.drained = True


@dataclass(frozen=True, kw_only=True)
class _Entry:
    tenant: str
    document: str
    revision: str
    point: Point


@dataclass(kw_only=True)
class FakeIndex:
    """Cosine over unit vectors. `error` is raised by every call."""

    entries: list[_Entry] = field(default_factory=list)
    error: Exception | None = None

    async def upsert(self, tenant: str, document: str, revision: str, points: Sequence[Point]) -> None:
        self._check()
        self.entries += [_Entry(tenant=tenant, document=document, revision=revision, point=point) for point in points]

    async def search(
        self,
        tenant: str,
        vector: Sequence[float],
        k: int,
        document_ids: Sequence[str] | None = None,
        revision_ids: Sequence[str] | None = None,
    ) -> list[Hit]:
        self._check()
        mine = [
            entry
            for entry in self.entries
            if entry.tenant == tenant
            and (document_ids is None or entry.document in document_ids)
            and (revision_ids is None or entry.revision in revision_ids)
        ]
        hits = [_hit(entry, vector) for entry in mine]
        return sorted(hits, key=lambda hit: -hit.score)[:k]

    async def count(self, tenant: str, document: str) -> int:
        self._check()
        return sum(entry.tenant == tenant and entry.document == document for entry in self.entries)

    async def delete_document(self, tenant: str, document: str) -> None:
        self._check()
        self.entries = [entry for entry in self.entries if (entry.tenant, entry.document) != (tenant, document)]

    def _check(self) -> None:
        if self.error is not None:
            raise self.error


@dataclass(kw_only=True)
class Counter:
    """Something to be called, and how often it was."""

    calls: int = 0

    def __call__(self) -> None:
        self.calls += 1


def _hit(entry: _Entry, vector: Sequence[float]) -> Hit:
    score = sum(a * b for a, b in zip(entry.point.vector, vector, strict=True))
    return Hit(passage_id=entry.point.passage_id, document_id=entry.document, revision_id=entry.revision, score=score)
