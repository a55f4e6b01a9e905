"""One answer in progress: the plan handed to the engine, its pieces, and the whole of them.

    running = await begin(...)              planned, and whatever can be refused is refused here, before the first piece
    async for piece in running.pieces(): ...
    running.answer()
    await running.end()                     in any case: frees the engine, writes the audit record

Knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace
from typing import cast

from sqlalchemy.orm import Session

from server import audit
from server.asks import repository
from server.asks.plan import OR_FALL_BACK, ModuleVersion
from server.asks.retrieval import cited
from server.asks.schemas import Answer, Ask, Fallback, Mode, ScoredText, Usage
from server.asks.service import Plan, plan
from server.db import documents, modules
from server.engine.request import Delta, EngineRequest, FinishReason, Sampling, Score
from server.errors import ArtefactRefused, DocumentNotFound, EngineStopped, ExtractorUnavailable, ModuleCorrupt, StorageFull
from server.parts import Parts
from server.transactions import reading, writing

logger = logging.getLogger(__name__)

_MODES_WITH_MODULES = frozenset({Mode.AUTO, Mode.CLOSED_BOOK, Mode.OPEN_BOOK})


async def begin(parts: Parts, tenant_id: str, ask: Ask, request_id: str) -> Running:
    """The answer with its scores and its first piece. Raises whatever planning and the engine refuse; where that is the adapters, known
    at last when the engine has read them or found no room to, and the request falls back, it is planned again without the module."""
    try:
        return await _begin(parts, tenant_id, ask, request_id)
    except (ArtefactRefused, ExtractorUnavailable, StorageFull):
        if ask.fallback == Fallback.ERROR or ask.mode not in _MODES_WITH_MODULES:
            raise
        return await _begin(parts, tenant_id, ask.model_copy(update={"mode": Mode.RETRIEVAL}), request_id)


async def _begin(parts: Parts, tenant_id: str, ask: Ask, request_id: str) -> Running:
    running = Running(parts, tenant_id, await plan(parts, tenant_id, ask), request_id)
    try:
        await running.start(ask)
    except ArtefactRefused as error:
        await running.release()
        raise await _refusal(parts, tenant_id, running.plan, error) from error
    except BaseException:
        await running.release()
        raise
    return running


class Running:
    """`scores` are there from the start; the text grows with `pieces`."""

    def __init__(self, parts: Parts, tenant_id: str, plan: Plan, request_id: str) -> None:
        self._parts = parts
        self._tenant_id = tenant_id
        self._engine = parts.models.get().engine
        # Never the caller's request id: two requests may come with the same one.
        self._engine_id = f"ask-{uuid.uuid4().hex}"
        self._stream: AsyncGenerator[Delta, None] | None = None
        self._first: Delta | None = None
        self._last: Delta | None = None
        self._text: list[str] = []
        self._scores: list[Score] | None = None
        self.plan = plan
        self.request_id = request_id

    async def start(self, ask: Ask) -> None:
        request = self._request(ask)
        if ask.score is not None:
            self._scores = await self._engine.score(replace(request, request_id=f"score-{uuid.uuid4().hex}"), ask.score)
        if ask.max_tokens:
            self._stream = cast(AsyncGenerator[Delta, None], self._engine.submit(request))
            self._first = await self._next()

    async def pieces(self) -> AsyncIterator[str]:
        """The answer's text as it is written. Raises EngineStopped if the engine gives up on it."""
        delta = self._first
        while delta is not None:
            self._last = delta
            self._text.append(delta.text)
            if delta.text:
                yield delta.text
            delta = await self._next() if delta.finish_reason is None else None
        if self._finish is FinishReason.CANCELLED:
            raise _stopped()

    def answer(self) -> Answer:
        """After the last piece."""
        prompt, completion = (self._last.prompt_tokens, self._last.completion_tokens) if self._last else (len(self.plan.prompt), 0)
        return Answer(
            answer="".join(self._text),
            citations=[cited(passage) for passage in self.plan.passages],
            used=self.plan.used,
            usage=Usage(prompt_tokens=prompt, completion_tokens=completion),
            scores=None if self._scores is None else [_scored(score) for score in self._scores],
            finish_reason=self._finish,
            request_id=self.request_id,
        )

    async def release(self) -> None:
        """Stop the engine's work on this answer, if there is any."""
        self._engine.cancel(self._engine_id)
        if self._stream is not None:
            await self._stream.aclose()

    async def end(self) -> None:
        await self.release()
        await writing(self._parts.database, self._record)

    def _request(self, ask: Ask) -> EngineRequest:
        return EngineRequest(
            request_id=self._engine_id,
            tenant=self._tenant_id,
            prompt=self.plan.prompt,
            module=self.plan.worn.module,
            extractor=self.plan.worn.extractor,
            sampling=Sampling(max_tokens=max(1, ask.max_tokens), temperature=ask.temperature, seed=ask.seed),
            timeout=self._parts.settings.answer_seconds,
        )

    async def _next(self) -> Delta:
        assert self._stream is not None
        delta = await anext(self._stream, None)
        if delta is None:
            raise _stopped()
        return delta

    @property
    def _finish(self) -> FinishReason | None:
        return None if self._last is None else self._last.finish_reason

    def _record(self, session: Session) -> None:
        used, last = self.plan.used, self._last
        counts = {"prompt_tokens": len(self.plan.prompt), "completion_tokens": last.completion_tokens if last else 0}
        detail = {
            **used.model_dump(mode="json", exclude={"base"}),
            **counts,
            "finish_reason": self._finish,
            "scored": self._scores is not None,
        }
        about = used.km.document_id if used.km else self.plan.document_id
        audit.record(session, self._tenant_id, "ask", document_id=about, **detail)


async def _refusal(parts: Parts, tenant_id: str, refused: Plan, error: ArtefactRefused) -> Exception:
    """The error to answer with. A damaged module is put in quarantine; what says nothing of its files leaves them where they are."""
    module = refused.module
    if module is None or error.extra.get("digest") != module.digest:
        logger.error("an extractor cannot be served: %s", error.reason)
        return ExtractorUnavailable("the extractor that this answer needs cannot be served; its operator must restore it")
    logger.error("module %s cannot be served: %s", module.id, error.reason)
    answer = type(error)(error.detail + OR_FALL_BACK, document_id=module.document_id, digest=module.digest)
    try:
        if isinstance(error, ModuleCorrupt):
            await _quarantine(parts, tenant_id, module, error)
        else:
            await reading(parts.database, documents.get_live, tenant_id, module.document_id)
    except DocumentNotFound as deleted:
        return deleted
    return answer


async def _quarantine(parts: Parts, tenant_id: str, module: ModuleVersion, error: ModuleCorrupt) -> None:
    """Once: by the next time there may be a new artefact in the place of the damaged one. Raises DocumentNotFound."""
    if await writing(parts.database, _quarantine_row, tenant_id, module, error.reason):
        await asyncio.to_thread(parts.modules.quarantine, tenant_id, module.document_id, module.digest, error.reason)
        parts.models.get().engine.evict(parts.modules.path(tenant_id, module.document_id, module.digest), error)


def _quarantine_row(session: Session, tenant_id: str, module: ModuleVersion, reason: str) -> bool:
    """Raises DocumentNotFound for a document that was deleted meanwhile, which is why the files are not what they were."""
    if documents.lock(session, tenant_id, module.document_id) is None:
        raise DocumentNotFound("no such document")
    repository.touch(session, tenant_id, module.document_id)
    return modules.quarantine(session, tenant_id, module.id, reason)


def _scored(score: Score) -> ScoredText:
    return ScoredText(text=score.text, logprobs=list(score.logprobs), total=score.total)


def _stopped() -> EngineStopped:
    return EngineStopped("the engine stopped before the answer was complete; ask again")
