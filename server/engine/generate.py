"""Many answers at once on the calling thread, as a library: what a trainer writes its training texts with."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from server.engine.base_model import BaseModel
from server.engine.batch_engine import BatchEngine
from server.engine.options import EngineOptions
from server.engine.request import EngineRequest
from server.engine.sequence import Event

LOAD_SECONDS = 1.0
"""How long to wait for adapters before `should_stop` is asked again."""


def generate_batch(
    base: BaseModel,
    requests: Sequence[EngineRequest],
    *,
    options: EngineOptions | None = None,
    on_finished: Callable[[int, str], None] = lambda index, text: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> list[str | None]:
    """The answers in the order of `requests`; None for those that `should_stop`, asked at every step, did not let finish.

    `on_finished(index, text)` is called as each ends. The first request that fails raises what its stream would have raised. The
    model is as before when this returns.
    """
    engine = BatchEngine(base, options or EngineOptions())
    try:
        return generate_on(engine, requests, on_finished, should_stop)
    finally:
        engine.close()


def generate_on(
    engine: BatchEngine,
    requests: Sequence[EngineRequest],
    on_finished: Callable[[int, str], None] = lambda index, text: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> list[str | None]:
    """As `generate_batch`, on an engine that is the caller's alone and keeps what it has read. One that raised is to be closed."""
    texts: list[str | None] = [None] * len(requests)
    collectors = [_Collector() for _ in requests]

    def start(index: int) -> None:
        engine.add(engine.generation(requests[index], collectors[index]))

    def finished(index: int) -> bool:
        if collectors[index].ended:
            texts[index] = text = collectors[index].text()
            on_finished(index, text)
        return collectors[index].ended

    run_together(engine, len(requests), start, finished, should_stop)
    return texts


def run_together(
    engine: BatchEngine,
    requests: int,
    start: Callable[[int], None],
    finished: Callable[[int], bool],
    should_stop: Callable[[], bool] = lambda: False,
) -> None:
    """So many requests in their order, as many at once as the engine runs: `start(index)` adds one, `finished(index)` says whether it has
    ended and takes what it was told."""
    waiting, running = list(range(requests))[::-1], list[int]()
    while (waiting or running) and not should_stop():
        while waiting and len(running) < engine.options.max_batch:
            running.append(waiting.pop())
            start(running[-1])
        if not engine.step():
            engine.wait_for_load(LOAD_SECONDS)
        running = [index for index in running if not finished(index)]


class _Collector:
    """Joins the pieces of one answer."""

    def __init__(self) -> None:
        self.ended = False
        self._error: Exception | None = None
        self._pieces: list[str] = []

    def __call__(self, event: Event) -> None:
        assert not isinstance(event, list)
        if isinstance(event, Exception):
            self._error, self.ended = event, True
        else:
            self._pieces.append(event.text)
            self.ended = event.finish_reason is not None

    def text(self) -> str:
        if self._error is not None:
            raise self._error
        return "".join(self._pieces)
