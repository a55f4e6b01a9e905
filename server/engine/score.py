"""Many continuations scored at once on the calling thread, as a library; `generate.py` is its sibling that writes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from server.engine.base_model import BaseModel
from server.engine.batch_engine import BatchEngine
from server.engine.generate import run_together
from server.engine.options import EngineOptions
from server.engine.request import EngineRequest, Score
from server.engine.sequence import Event

Tokens = tuple[int, ...]


def score_batch(
    base: BaseModel,
    asks: Sequence[tuple[EngineRequest, Sequence[Tokens]]],
    *,
    options: EngineOptions | None = None,
    on_finished: Callable[[int, list[Score]], None] = lambda index, scores: None,
) -> list[list[Score]]:
    """The scores of each request's continuations, given as token ids (so that an end of turn can be one of them), in order.

    `on_finished(index, scores)` is called as each request ends. The first that fails raises what `Engine.score` would have raised. The
    model is as before when this returns.
    """
    engine = BatchEngine(base, options or EngineOptions())
    try:
        return score_on(engine, asks, on_finished)
    finally:
        engine.close()


def score_on(
    engine: BatchEngine,
    asks: Sequence[tuple[EngineRequest, Sequence[Tokens]]],
    on_finished: Callable[[int, list[Score]], None] = lambda index, scores: None,
) -> list[list[Score]]:
    """As `score_batch`, on an engine that is the caller's alone and keeps what it has read. One that raised is to be closed."""
    found: list[list[Score]] = [[] for _ in asks]
    told: list[list[Event]] = [[] for _ in asks]
    tokenizer = engine.base.tokenizer

    def start(index: int) -> None:
        request, continuations = asks[index]
        named = [(str(tokenizer.decode(list(ids))), ids) for ids in continuations]
        engine.add(engine.scoring_tokens(request, named, told[index].append))

    def finished(index: int) -> bool:
        if told[index]:
            found[index] = scores = _scores(told[index][0])
            on_finished(index, scores)
        return bool(told[index])

    run_together(engine, len(asks), start, finished)
    return found


def _scores(event: Event) -> list[Score]:
    if isinstance(event, Exception):
        raise event
    assert isinstance(event, list)  # nothing else ends a scoring that nobody cancels
    return event
