"""Many continuations scored at once on the calling thread, as a library; `generate.py` is its sibling that writes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from server.engine.base_model import BaseModel
from server.engine.batch_engine import BatchEngine
from server.engine.generate import LOAD_SECONDS
from server.engine.options import EngineOptions
from server.engine.request import EngineRequest, Score
from server.engine.sequence import Event, Scoring
from server.errors import ContextLimit

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
    found: dict[int, list[Score]] = {}
    engine = BatchEngine(base, options or EngineOptions())
    waiting, running = list(enumerate(asks))[::-1], dict[int, list[Event]]()
    try:
        while waiting or running:
            while waiting and len(running) < engine.options.max_batch:
                index, (request, continuations) = waiting.pop()
                running[index] = []
                engine.add(_sequence(engine, request, continuations, running[index].append))
            if not engine.step():
                engine.wait_for_load(LOAD_SECONDS)
            for index in [index for index, events in running.items() if events]:
                found[index] = scores = _scores(running.pop(index)[0])
                on_finished(index, scores)
        return [found[index] for index in range(len(asks))]
    finally:
        engine.close()


def _sequence(engine: BatchEngine, request: EngineRequest, continuations: Sequence[Tokens], emit: Callable[[Event], None]) -> Scoring:
    """Raises ContextLimit or InvalidInput."""
    checked = engine.scoring(request, (), emit)
    longest = max((len(ids) for ids in continuations), default=0)
    if len(request.prompt) + longest > engine.limit:
        raise ContextLimit(
            f"The prompt has {len(request.prompt)} tokens and the text to score {longest}; the model's context is {engine.limit}.",
            prompt_tokens=len(request.prompt),
            max_tokens=longest,
            limit=engine.limit,
        )
    decode = engine.base.tokenizer.decode
    sequence = Scoring(request, [(str(decode(list(ids))), ids) for ids in continuations], emit)
    sequence.chain = checked.chain
    return sequence


def _scores(event: Event) -> list[Score]:
    if isinstance(event, Exception):
        raise event
    assert isinstance(event, list)  # nothing else ends a scoring that nobody cancels
    return event
