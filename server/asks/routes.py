"""`/ask` and `/search`."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from itertools import count
from typing import Any, Final

from asgi_correlation_id import correlation_id
from fastapi import APIRouter, Request

from server.asks import answering, retrieval
from server.asks.answering import Running
from server.asks.schemas import Answer, Ask, Search, SearchResult, Started, TextDelta
from server.errors import (
    ContextLimit,
    DeadlineExceeded,
    DocumentNotFound,
    EngineStopped,
    ExtractorUnavailable,
    IndexUnavailable,
    InvalidHistory,
    KmserveError,
    ModuleCorrupt,
    ModuleMissing,
    ModuleNotReady,
    ModuleUnreadable,
    ModuleUnsupported,
    ModuleWrongBase,
    NotRetrievable,
    Starting,
    StorageFull,
    TooManyRequests,
    UnknownMode,
)
from server.parts import PartsOf
from server.problems import documented, known, problem_json
from server.security import Asker, KeyScope
from server.streams import EventStream, described, sse, unless_gone

router = APIRouter(tags=["questions"])
logger = logging.getLogger(__name__)

_EVENTS: Final = {
    "answer.started": "`{request_id, used}`",
    "citation": "a Citation",
    "answer.delta": "`{text}`",
    "answer.completed": "the whole Answer",
    "error": "a Problem, and the stream ends",
}
_ANSWERED: Final[dict[int | str, dict[str, Any]]] = {
    200: {"content": described(_EVENTS), "description": "The answer; with `stream`, as server-sent events while it is written."}
}
_ASK_ERRORS: Final = (
    DocumentNotFound,
    NotRetrievable,
    ModuleNotReady,
    ModuleCorrupt,
    ModuleWrongBase,
    ModuleUnsupported,
    ModuleMissing,
    ModuleUnreadable,
    ExtractorUnavailable,
    UnknownMode,
    InvalidHistory,
    ContextLimit,
    TooManyRequests,
    DeadlineExceeded,
    EngineStopped,
    IndexUnavailable,
    Starting,
    StorageFull,
)


@router.post("/ask", operation_id="ask", response_model=Answer, responses={**_ANSWERED, **documented(*_ASK_ERRORS)})
async def ask(body: Ask, request: Request, parts: PartsOf, caller: Asker) -> Any:
    """Ask one document, several, or all that the key may read. The answer says what it used and cites the passages it stands on."""
    if body.score is not None:
        caller.require(KeyScope.EVALUATE)
    running = await unless_gone(request, answering.begin(parts, caller.tenant, body, correlation_id.get() or ""))
    if body.stream:
        return EventStream(_events(running), ended=running.end)
    try:
        return await unless_gone(request, _whole(running))
    finally:
        await running.end()


@router.post("/search", operation_id="search", responses=documented(DocumentNotFound, IndexUnavailable, Starting))
async def search(body: Search, parts: PartsOf, caller: Asker) -> SearchResult:
    """The passages nearest to a query, best first."""
    return SearchResult(hits=await retrieval.search(parts, caller.tenant, body))


async def _whole(running: Running) -> Answer:
    async for _ in running.pieces():
        pass
    return running.answer()


async def _events(running: Running) -> AsyncGenerator[bytes, None]:
    """What goes wrong from here on is an event, for the status is sent."""
    numbers = count(1)
    try:
        yield sse("answer.started", Started(request_id=running.request_id, used=running.plan.used), next(numbers))
        for passage in running.plan.passages:
            yield sse("citation", retrieval.cited(passage), next(numbers))
        async for piece in running.pieces():
            yield sse("answer.delta", TextDelta(text=piece), next(numbers))
        yield sse("answer.completed", running.answer(), next(numbers))
    except Exception as error:
        logger.warning("a streamed answer failed", exc_info=error)
        yield sse("error", problem_json(known(error) or KmserveError("the server failed; ask again")), next(numbers))
