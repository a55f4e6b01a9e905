from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
from torch import Tensor

from server.engine.base_model import BaseModel
from server.engine.batch_engine import BatchEngine
from server.engine.decode_step import DecodeStep
from server.engine.decoding import Compute, Decoding
from server.engine.request import Scope
from server.errors import Unavailable
from tests.support.engines import Ear, Make, finish, spoken, start
from tests.support.oracle import Oracle
from tests.support.tiny_models import Shelf, tiny_artefact, tiny_prompt, tiny_request


def decoding_of(engine: BatchEngine) -> Decoding:
    assert engine.runner.decoding is not None
    return engine.runner.decoding


def replay(compute: Compute) -> Compute:
    """What a graph does: one buffer of logits, written over by every replay."""
    kept: list[Tensor] = []

    def again() -> Tensor:
        logits = compute()
        kept[:] = kept or [logits.clone()]
        return kept[0].copy_(logits)

    return again


def ask(engine: BatchEngine, seeds: range, max_tokens: int = 6) -> list[Ear]:
    ears = [start(engine, tiny_request(str(seed), tiny_prompt(seed), max_tokens=max_tokens)) for seed in seeds]
    finish(engine)
    return ears


def test_decoding_is_not_in_fixed_shapes_on_a_cpu_unless_asked_for(make: Make) -> None:
    assert make().runner.decoding is None


def test_sequences_of_several_pools_wear_what_they_should(make: Make, base: BaseModel, oracle: Oracle, shelf: Shelf) -> None:
    """Lengths on both sides of a capacity class, that grow from one number of seen tokens to the next; bare rows among them."""
    engine = make(static_decode=True, max_batch=8)
    lengths = (12, 58, 62, 90, 126, 20)
    modules = [tiny_artefact(base, seed, rank=1 + seed, scope=(Scope.ALL, Scope.ANSWER)[seed % 2]) for seed in range(4)]
    worn = [*modules, None, None]
    ears = []
    for seed, (length, module) in enumerate(zip(lengths, worn, strict=True)):
        ref = shelf.put(str(seed), module) if module else None
        ears.append(start(engine, tiny_request(str(seed), tiny_prompt(seed, length), ref, max_tokens=10 + seed)))
    finish(engine)
    for seed, (length, module, ear) in enumerate(zip(lengths, worn, ears, strict=True)):
        assert ear.tokens == spoken(oracle, tiny_prompt(seed, length), 10 + seed, module)


def test_a_shape_is_recorded_once_and_replayed(make: Make, oracle: Oracle) -> None:
    engine = make(static_decode=True)
    decoding = decoding_of(engine)
    decoding.record = replay
    for ear, seed in zip(ask(engine, range(3)), range(3), strict=True):
        assert ear.tokens == spoken(oracle, tiny_prompt(seed), 6)
    recorded, replayed = decoding.recorded, decoding.replayed
    assert recorded == 1
    assert replayed == 4
    assert engine.stats().items() >= {"decode_recorded": 1.0, "decode_replayed": 4.0, "decode_failed": 0.0}.items()
    ask(engine, range(3, 6))
    assert (decoding.recorded, decoding.replayed) == (recorded, 2 * replayed + 1)


def failing(compute: Compute) -> Compute:
    raise RuntimeError("operation not permitted when stream is capturing")


def wrong(compute: Compute) -> Compute:
    return lambda: compute() + 1


@pytest.mark.parametrize("record", [failing, wrong])
def test_a_recording_that_fails_or_is_wrong_is_given_up(
    make: Make, oracle: Oracle, caplog: pytest.LogCaptureFixture, record: Callable[[Compute], Compute]
) -> None:
    engine = make(static_decode=True)
    decoding_of(engine).record = record
    with caplog.at_level(logging.WARNING):
        ears = ask(engine, range(3))
    assert decoding_of(engine).failed
    assert [record.message for record in caplog.records] == ["decoding steps cannot be recorded; this engine decodes call by call"]
    for seed, ear in enumerate(ears):
        assert ear.tokens == spoken(oracle, tiny_prompt(seed), 6)


def test_what_is_not_finite_is_no_fault_of_the_recording(make: Make, oracle: Oracle, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that breaks while it decodes: beside another request, and alone, where it can prove nothing."""
    engine = make(static_decode=True)
    decoding = decoding_of(engine)
    decoding.record = replay
    compute, lanes = DecodeStep.compute, 2

    def breaking(step: DecodeStep) -> Tensor:
        logits = compute(step)
        if step.shape.lanes == lanes:
            logits[0] = float("nan")
        return logits

    monkeypatch.setattr(DecodeStep, "compute", breaking)
    ears = ask(engine, range(2))
    assert isinstance(ears[0].events[-1], Unavailable)
    assert ears[1].tokens == spoken(oracle, tiny_prompt(1), 6)
    assert decoding.recorded == 2
    lanes = 1
    decoding.clear()
    assert isinstance(ask(engine, range(1))[0].events[-1], Unavailable)
    assert not decoding.failed
    assert decoding.recorded == 2


def test_what_was_made_for_memory_that_is_gone_goes_too(make: Make) -> None:
    """A pool that grew is other memory: nothing is left over the old."""
    engine = make(static_decode=True)
    decoding = decoding_of(engine)
    ask(engine, range(1))
    assert all(step.valid for step, _ in decoding._steps.values())
    before = set(decoding._steps)
    ask(engine, range(3))
    assert before.isdisjoint(decoding._steps)
    assert all(step.valid for step, _ in decoding._steps.values())
