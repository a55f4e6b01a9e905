"""Adapters and failures within a batch: what is wrong with one request's module or step reaches that request alone."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from server.engine.base_model import BaseModel
from server.engine.kv_cache import KvPool
from server.engine.prompt import Prompt
from server.engine.request import ArtefactRef
from server.errors import DocumentNotFound, ModuleCorrupt, Unavailable
from tests.support.engines import Make, answer, finish, spoken, start
from tests.support.oracle import Oracle
from tests.support.tiny_models import Shelf, tiny_artefact, tiny_prompt, tiny_request

POISON = 200
"""A token that the poisoned model cannot read."""


def test_a_corrupt_module_reaches_only_the_request_that_asked(base: BaseModel, make: Make, oracle: Oracle, shelf: Shelf) -> None:
    engine = make()
    prompt = tiny_prompt(1)
    corrupt = shelf.put("bad", tiny_artefact(base, 1))
    shelf.corrupt.add("bad")
    good = start(engine, tiny_request("good", prompt, shelf.put("good", tiny_artefact(base, 2))))
    bare = start(engine, tiny_request("base", prompt))
    bad = start(engine, tiny_request("bad", prompt, corrupt))
    finish(engine)
    assert isinstance(bad.error, ModuleCorrupt)
    assert good.tokens == spoken(oracle, prompt, 8, shelf.artefacts["good"])
    assert bare.tokens == spoken(oracle, prompt, 8)


def test_a_corrupt_extractor_fails_the_request_and_holds_no_slot(base: BaseModel, make: Make, shelf: Shelf) -> None:
    engine = make(slots=1)
    shelf.corrupt.add("ke")
    module = shelf.put("module", tiny_artefact(base, 1))
    bad = start(engine, tiny_request("bad", tiny_prompt(1), module, shelf.put("ke", tiny_artefact(base, 2, extractor=True))))
    other = start(engine, tiny_request("other", tiny_prompt(1), shelf.put("other", tiny_artefact(base, 3))))
    finish(engine)
    assert isinstance(bad.error, ModuleCorrupt)
    assert other.reason is not None


def test_a_module_whose_output_is_not_finite_ends_its_request_and_taints_nobody(
    base: BaseModel, make: Make, oracle: Oracle, shelf: Shelf
) -> None:
    broken = tiny_artefact(base, 1)
    next(iter(broken.b.values())).fill_(float("nan"))
    engine = make(max_batch=3)
    requests = [
        tiny_request("bad", tiny_prompt(1, bare=30), shelf.put("bad", broken)),
        *(tiny_request(str(n), tiny_prompt(n)) for n in range(6)),
    ]
    bad, *others = [start(engine, request) for request in requests]
    finish(engine)
    assert isinstance(bad.error, Unavailable)
    for number, other in enumerate(others):
        assert other.tokens == spoken(oracle, tiny_prompt(number), 8)


@pytest.fixture
def poisoned(base: BaseModel) -> Iterator[None]:
    """A model whose forward pass fails on one token."""

    def refuse(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        if (named["input_ids"] == POISON).any():
            raise RuntimeError("a step failed")

    handle = base.model.register_forward_pre_hook(refuse, with_kwargs=True)
    yield
    handle.remove()


@pytest.mark.usefixtures("poisoned")
def test_a_failing_step_ends_only_the_request_that_makes_it_fail(make: Make, oracle: Oracle, caplog: pytest.LogCaptureFixture) -> None:
    engine = make()
    healthy = Prompt(bare=(256, 1, 2), adapted=(3, 4))
    first = start(engine, tiny_request("first", healthy, max_tokens=6))
    engine.step()
    bad = start(engine, tiny_request("bad", Prompt(bare=(256, POISON), adapted=(3,))))
    second = start(engine, tiny_request("second", healthy, max_tokens=6))
    finish(engine)
    expected = spoken(oracle, healthy, 6)
    assert POISON not in expected
    assert isinstance(bad.error, Unavailable)
    assert first.tokens == second.tokens == expected
    assert "a step failed" in caplog.text


def test_a_reused_slot_holds_nothing_of_its_last_owner(base: BaseModel, make: Make, oracle: Oracle, shelf: Shelf) -> None:
    engine = make(slots=1)
    large = shelf.put("large", tiny_artefact(base, 1, rank=8))
    small = shelf.put("small", tiny_artefact(base, 2, rank=2))
    partial = shelf.put("partial", tiny_artefact(base, 3, rank=4, targets=3))
    prompt = tiny_prompt(1)
    for ref in (large, small, large, partial, small):
        assert answer(engine, tiny_request("a", prompt, ref)).tokens == spoken(oracle, prompt, 8, shelf.artefacts[ref.digest])
    assert engine.stats()["slot_evictions"] == 4


def test_steps_of_the_same_shape_wear_what_their_own_requests_wear(base: BaseModel, make: Make, oracle: Oracle, shelf: Shelf) -> None:
    engine = make(slots=2)
    refs = [shelf.put(f"module-{seed}", tiny_artefact(base, seed)) for seed in range(2)]
    prompt = tiny_prompt(1)
    for ref in (*refs, *refs):
        told = answer(engine, tiny_request("a", prompt, ref, max_tokens=1)).tokens
        assert told == spoken(oracle, prompt, 1, shelf.artefacts[ref.digest])
    assert spoken(oracle, prompt, 1, shelf.artefacts["module-0"]) != spoken(oracle, prompt, 1, shelf.artefacts["module-1"])


def test_an_evicted_module_is_read_again(base: BaseModel, make: Make, shelf: Shelf) -> None:
    engine = make()
    ref = shelf.put("module", tiny_artefact(base, 1))
    before = answer(engine, tiny_request("a", tiny_prompt(1), ref)).tokens
    engine.evict(Path("module"), DocumentNotFound("deleted"))
    assert engine.stats()["host_bytes"] == engine.stats()["module_slots"] == 0
    shelf.put("module", tiny_artefact(base, 2))
    assert answer(engine, tiny_request("a", tiny_prompt(1), ref)).tokens != before
    assert shelf.reads == ["module", "module"]


def test_a_request_in_flight_finishes_on_the_module_that_is_evicted(base: BaseModel, make: Make, oracle: Oracle, shelf: Shelf) -> None:
    engine = make()
    artefact = tiny_artefact(base, 1)
    ear = start(engine, tiny_request("a", tiny_prompt(1), shelf.put("module", artefact)))
    while not ear.events:
        if not engine.step():
            engine.wait_for_load(1.0)
    engine.evict(Path("module"), DocumentNotFound("deleted"))
    finish(engine)
    assert ear.tokens == spoken(oracle, tiny_prompt(1), 8, artefact)


@pytest.mark.parametrize("loaded", [True, False])
def test_a_request_that_waits_for_an_evicted_artefact_fails_and_brings_nothing_back(
    base: BaseModel, make: Make, shelf: Shelf, loaded: bool
) -> None:
    engine = make(max_batch=1)
    doomed = shelf.put("module", tiny_artefact(base, 1))
    twin = replace(doomed, directory=Path("twin"))
    running = start(engine, tiny_request("running", tiny_prompt(1)))
    engine.step()
    waiting = start(engine, tiny_request("waiting", tiny_prompt(2), doomed))
    other = start(engine, tiny_request("twin", tiny_prompt(3), twin))
    if loaded:
        engine.wait_for_load(1.0)
        engine.step()
    engine.evict(doomed.directory, DocumentNotFound("deleted"))
    finish(engine)
    assert isinstance(waiting.error, DocumentNotFound)
    assert running.tokens
    assert other.tokens, "equal bytes in another directory are another's"
    assert engine.stats()["module_slots"] == engine.stats()["host_adapters"] == 1


def test_many_requests_leave_no_rows_slots_or_tensors(base: BaseModel, make: Make, shelf: Shelf) -> None:
    engine = make(slots=2, max_batch=4, max_queue=1000)
    refs: list[ArtefactRef | None] = [None, *(shelf.put(f"module-{number}", tiny_artefact(base, number)) for number in range(4))]
    answer(engine, tiny_request("warm", tiny_prompt(1)))
    for number in range(100):
        start(engine, tiny_request(str(number), tiny_prompt(number, bare=5 + number % 7), refs[number % 5], max_tokens=2))
        if number % 9 == 0:
            engine.cancel(str(number))
    finish(engine)
    gc.collect()
    stats = engine.stats()
    assert (stats["kv_tokens_reserved"], stats["waiting"], stats["running"], stats["ended"]) == (0, 0, 0, 101)
    assert not [thing for thing in gc.get_objects() if type(thing) is KvPool]
    assert all(not users for users in engine.adapters.modules._users)
