from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio
import torch

from server.engine.base_model import BaseModel
from server.engine.embedded import EmbeddedEngine
from server.engine.options import EngineOptions
from server.engine.request import ArtefactRef, Delta, Engine, EngineRequest, FinishReason
from server.errors import ContextLimit, DeadlineExceeded, DocumentNotFound, EngineStopped, ModuleCorrupt, TooManyRequests, Unavailable
from tests.support.oracle import Oracle
from tests.support.tiny_models import Shelf, tiny_artefact, tiny_base, tiny_prompt, tiny_request

FOREVER = 400
"""Tokens of a request that is meant to be running while something else happens."""


@pytest.fixture(scope="module")
def base() -> BaseModel:
    """Without an end of turn: requests last as long as they may."""
    base = tiny_base("llama", torch.float64)
    return BaseModel(**{**base.__dict__, "eos_ids": frozenset()})


@pytest_asyncio.fixture
async def engine(base: BaseModel, shelf: Shelf) -> AsyncIterator[EmbeddedEngine]:
    engine = EmbeddedEngine(base, options=EngineOptions(max_batch=4, max_queue=2), read=shelf.read)
    engine.start()
    yield engine
    await engine.drain(grace=0)


async def read(engine: EmbeddedEngine, request: EngineRequest) -> list[Delta]:
    return [delta async for delta in engine.submit(request)]


def tokens(deltas: list[Delta]) -> tuple[int, ...]:
    return tuple(token for delta in deltas for token in delta.token_ids)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


async def running(engine: EmbeddedEngine, count: int) -> None:
    await until(lambda: engine.stats()["running"] == count)


def test_it_is_an_engine(base: BaseModel) -> None:
    engine: Engine = EmbeddedEngine(base)
    asyncio.run(engine.drain())


async def test_requests_stream_side_by_side(engine: EmbeddedEngine, oracle: Oracle, base: BaseModel, shelf: Shelf) -> None:
    refs: list[ArtefactRef | None] = [None, *(shelf.put(f"module-{seed}", tiny_artefact(base, seed)) for seed in range(3))]
    answers = await asyncio.gather(*(read(engine, tiny_request(str(n), tiny_prompt(n), ref)) for n, ref in enumerate(refs)))
    for number, (ref, answer) in enumerate(zip(refs, answers, strict=True)):
        artefact = shelf.artefacts[ref.digest] if ref else None
        assert tokens(answer) == oracle.greedy(tiny_prompt(number), 8, artefact).tokens


async def test_deltas_arrive_while_the_answer_grows(engine: EmbeddedEngine) -> None:
    async with aclosing(engine.submit(tiny_request("a", tiny_prompt(1), max_tokens=FOREVER))) as stream:
        first = await anext(stream)
        assert first.finish_reason is None
        assert engine.stats()["running"] == 1


async def test_closing_the_stream_cancels(engine: EmbeddedEngine) -> None:
    async with aclosing(engine.submit(tiny_request("a", tiny_prompt(1), max_tokens=FOREVER))) as stream:
        await anext(stream)
    await running(engine, 0)
    assert engine.stats()["generated_tokens"] < FOREVER


async def test_a_cancelled_reader_cancels(engine: EmbeddedEngine) -> None:
    reader = asyncio.create_task(read(engine, tiny_request("a", tiny_prompt(1), max_tokens=FOREVER)))
    await running(engine, 1)
    reader.cancel()
    await running(engine, 0)


async def test_cancel_by_id_ends_the_stream_with_its_reason(engine: EmbeddedEngine) -> None:
    reader = asyncio.create_task(read(engine, tiny_request("a", tiny_prompt(1), max_tokens=FOREVER)))
    await running(engine, 1)
    engine.cancel("a")
    assert (await reader)[-1].finish_reason is FinishReason.CANCELLED


async def test_a_cancelled_score_says_so(engine: EmbeddedEngine, base: BaseModel, shelf: Shelf) -> None:
    scoring = asyncio.create_task(engine.score(tiny_request("a", tiny_prompt(1)), ["x" * 50] * 200))
    await running(engine, 1)
    engine.cancel("a")
    with pytest.raises(Unavailable, match="cancelled"):
        await scoring


async def test_scores_come_back_in_order(engine: EmbeddedEngine, oracle: Oracle) -> None:
    scores = await engine.score(tiny_request("a", tiny_prompt(1)), ["30 days", "45 days"])
    for told in scores:
        expected = torch.log_softmax(oracle.follow(tiny_prompt(1), told.token_ids), -1)
        assert told.total == pytest.approx(float(expected.gather(1, torch.tensor(told.token_ids)[:, None]).sum()), abs=1e-9)
    assert [told.text for told in scores] == ["30 days", "45 days"]


async def test_errors_are_raised_by_the_stream(engine: EmbeddedEngine, base: BaseModel, shelf: Shelf) -> None:
    with pytest.raises(ContextLimit):
        await read(engine, tiny_request("long", tiny_prompt(1), max_tokens=10_000))
    corrupt = shelf.put("corrupt", tiny_artefact(base, 1))
    shelf.corrupt.add("corrupt")
    with pytest.raises(ModuleCorrupt):
        await read(engine, tiny_request("corrupt", tiny_prompt(1), corrupt))


async def test_a_full_queue_turns_away(engine: EmbeddedEngine) -> None:
    readers = [asyncio.create_task(read(engine, tiny_request(str(n), tiny_prompt(n), max_tokens=FOREVER))) for n in range(6)]
    await running(engine, 4)
    with pytest.raises(TooManyRequests):
        await read(engine, tiny_request("more", tiny_prompt(9)))
    for number in range(6):
        engine.cancel(str(number))
    await asyncio.gather(*readers)


async def test_loading_does_not_hold_up_others(base: BaseModel, shelf: Shelf) -> None:
    arrived = threading.Event()

    def slowly(ref: ArtefactRef, *others: object) -> object:
        assert arrived.wait(10)
        return shelf.artefacts[ref.digest]

    engine = EmbeddedEngine(base, read=slowly)  # type: ignore[arg-type]
    engine.start()
    module = shelf.put("module", tiny_artefact(base, 1))
    waiting = asyncio.create_task(read(engine, tiny_request("slow", tiny_prompt(1), module)))
    await read(engine, tiny_request("fast", tiny_prompt(2)))
    assert not waiting.done()
    arrived.set()
    assert tokens(await waiting)
    await engine.drain()


async def test_a_load_that_hangs_does_not_outlast_the_deadline_of_who_waits(base: BaseModel, shelf: Shelf) -> None:
    """Nothing else wakes the engine: neither mail nor a step."""
    arrived = threading.Event()

    def slowly(ref: ArtefactRef, *others: object) -> object:
        assert arrived.wait(10)
        return shelf.artefacts[ref.digest]

    engine = EmbeddedEngine(base, read=slowly)  # type: ignore[arg-type]
    engine.start()
    request = tiny_request("slow", tiny_prompt(1), shelf.put("module", tiny_artefact(base, 1)))
    async with asyncio.timeout(5):
        with pytest.raises(DeadlineExceeded):
            await read(engine, replace(request, timeout=0.1))
    arrived.set()
    await engine.drain()


async def test_a_prefetched_module_is_there_when_asked_for(engine: EmbeddedEngine, base: BaseModel, shelf: Shelf) -> None:
    module = shelf.put("module", tiny_artefact(base, 1))
    engine.prefetch(module)
    await until(lambda: engine.stats()["host_loads"] == 1)
    await read(engine, tiny_request("a", tiny_prompt(1), module))
    assert shelf.reads == ["module"]


async def test_a_failing_prefetch_surfaces_with_the_request(engine: EmbeddedEngine) -> None:
    absent = ArtefactRef(digest="absent", manifest_sha256="", directory=Path("absent"))
    engine.prefetch(absent)
    with pytest.raises(ModuleCorrupt):
        await read(engine, tiny_request("a", tiny_prompt(1), absent))


async def test_evict_frees_once_idle(engine: EmbeddedEngine, base: BaseModel, shelf: Shelf) -> None:
    module = shelf.put("module", tiny_artefact(base, 1))
    reader = asyncio.create_task(read(engine, tiny_request("a", tiny_prompt(1), module, max_tokens=100)))
    await running(engine, 1)
    engine.evict(Path("module"), DocumentNotFound("deleted"))
    assert len(tokens(await reader)) == 100
    await until(lambda: not engine.stats()["module_slots"] and not engine.stats()["host_adapters"])


async def test_drain_finishes_what_runs_and_refuses_the_rest(base: BaseModel) -> None:
    layers = dict(base.model.named_modules())
    engine = EmbeddedEngine(base)
    engine.start()
    reader = asyncio.create_task(read(engine, tiny_request("a", tiny_prompt(1), max_tokens=60)))
    await running(engine, 1)
    draining = asyncio.create_task(engine.drain())
    await asyncio.sleep(0)
    with pytest.raises(EngineStopped):
        await read(engine, tiny_request("late", tiny_prompt(1)))
    assert len(tokens(await reader)) == 60
    await draining
    assert dict(base.model.named_modules()) == layers


async def test_drain_with_a_grace_cancels_what_outlasts_it(base: BaseModel) -> None:
    engine = EmbeddedEngine(base)
    engine.start()
    reader = asyncio.create_task(read(engine, tiny_request("a", tiny_prompt(1), max_tokens=FOREVER)))
    await running(engine, 1)
    await engine.drain(grace=0.01)
    assert (await reader)[-1].finish_reason is FinishReason.CANCELLED


async def test_a_dead_thread_leaves_nobody_waiting(base: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = EmbeddedEngine(base)

    def die() -> bool:
        raise MemoryError

    monkeypatch.setattr(engine._batch, "step", die)
    engine.start()
    with pytest.raises(EngineStopped):
        await asyncio.wait_for(read(engine, tiny_request("a", tiny_prompt(1))), 5)
    await engine.drain()
    with pytest.raises(EngineStopped):
        await read(engine, tiny_request("b", tiny_prompt(1)))


async def test_a_closed_loop_does_not_stop_the_engine(engine: EmbeddedEngine) -> None:
    def abandon() -> None:
        loop = asyncio.new_event_loop()
        stream = engine.submit(tiny_request("lost", tiny_prompt(1), max_tokens=30))
        loop.run_until_complete(anext(stream))
        loop.close()

    await asyncio.to_thread(abandon)
    assert tokens(await read(engine, tiny_request("a", tiny_prompt(2))))


class FakeShare:
    """Two threads while busy alone, then one; remembers whether the engine said that it was busy."""

    def __init__(self) -> None:
        self.asked = 0
        self.busy = False
        self.periods = 0

    def threads(self) -> int:
        assert self.busy
        self.asked += 1
        return 1

    @contextmanager
    def active(self) -> Iterator[None]:
        self.busy = True
        self.periods += 1
        yield
        self.busy = False


async def test_the_cpu_is_shared_while_there_is_work(base: BaseModel) -> None:
    share = FakeShare()
    engine = EmbeddedEngine(base, options=EngineOptions(cores=share))
    engine.start()
    await read(engine, tiny_request("a", tiny_prompt(1)))
    await engine.drain()
    assert share.asked >= 8
    assert share.periods >= 1
    assert not share.busy
