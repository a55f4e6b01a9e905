"""An adapter that lies in a slot and has left host memory: requests take it from there, and nobody reads the disk for it again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from server.engine.base_model import BaseModel
from server.engine.batch_engine import BatchEngine
from server.engine.request import ArtefactRef, Scope, Tier
from server.errors import DocumentNotFound, ModuleCorrupt
from tests.support.engines import Ear, Make, answer, finish, spoken, start
from tests.support.oracle import Oracle
from tests.support.tiny_models import EOS, Shelf, tiny_artefact, tiny_prompt, tiny_request

PROMPT = tiny_prompt(1)


@pytest.fixture
def module(base: BaseModel, shelf: Shelf) -> ArtefactRef:
    return shelf.put("module", tiny_artefact(base, 1))


@pytest.fixture
def resident(make: Make, module: ArtefactRef) -> BatchEngine:
    """One slot with `module` in it, one place in the batch, and host memory for nothing."""
    engine = make(slots=1, max_batch=1, host_bytes=0)
    answer(engine, tiny_request("first", PROMPT, module))
    assert engine.residency() == {Path("module"): Tier.DEVICE}
    return engine


def loads_done(engine: BatchEngine) -> None:
    while any(not load.done() for waiting in engine.scheduler.waiting for load in waiting.loads):
        engine.wait_for_load(5.0)


def waiting_for(engine: BatchEngine, *refs: ArtefactRef) -> list[Ear]:
    """Requests behind one without adapters, which has the only place; what they wear has been looked for."""
    start(engine, tiny_request("running", tiny_prompt(2)))
    engine.step()
    ears = [start(engine, tiny_request(f"waiting-{number}", PROMPT, ref)) for number, ref in enumerate(refs)]
    loads_done(engine)
    return ears


def test_a_resident_module_is_read_once(resident: BatchEngine, module: ArtefactRef, oracle: Oracle, shelf: Shelf) -> None:
    for number in range(3):
        told = answer(resident, tiny_request(str(number), tiny_prompt(number), module)).tokens
        assert told == spoken(oracle, tiny_prompt(number), 8, shelf.artefacts["module"])
    assert shelf.reads == ["module"]
    stats = resident.stats()
    assert (stats["slot_hits"], stats["host_loads"]) == (3, 1)


def test_a_request_for_a_resident_module_waits_for_no_load(resident: BatchEngine, module: ArtefactRef) -> None:
    before = resident.stats()["load_wait_seconds"]
    ear = start(resident, tiny_request("again", PROMPT, module))
    assert resident.step(), "it joins at once"
    finish(resident)
    assert ear.tokens
    assert resident.stats()["load_wait_seconds"] == before


def test_module_and_extractor_act_as_they_did_from_host_memory(base: BaseModel, make: Make, oracle: Oracle, shelf: Shelf) -> None:
    """Scope, scaling and composition are kept with the slot."""
    km, ke = tiny_artefact(base, 1, scope=Scope.ANSWER), tiny_artefact(base, 2, extractor=True)
    refs = shelf.put("km", km), shelf.put("ke", ke)
    engine = make(host_bytes=0)
    for number in range(2):
        told = answer(engine, tiny_request(str(number), PROMPT, *refs)).tokens
        assert told == tuple(token for token in oracle.greedy(PROMPT, 8, km, ke).tokens if token != EOS)
    assert sorted(shelf.reads) == ["ke", "km"]


def test_a_prefetch_of_a_resident_module_reads_nothing(resident: BatchEngine, module: ArtefactRef, shelf: Shelf) -> None:
    resident.prefetch(module)
    assert resident.stats()["host_loading"] == 0
    resident.evict(module.directory, DocumentNotFound("deleted"))
    resident.prefetch(module)
    answer(resident, tiny_request("again", PROMPT, module))
    assert shelf.reads.count("module") >= 2


def test_a_slot_that_goes_to_another_meanwhile_is_read_again(
    base: BaseModel, resident: BatchEngine, module: ArtefactRef, oracle: Oracle, shelf: Shelf
) -> None:
    other = shelf.put("other", tiny_artefact(base, 2))
    ears = waiting_for(resident, other, module, module)
    assert shelf.reads == ["module", "other"]
    finish(resident)
    for ear, ref in zip(ears, (other, module, module), strict=True):
        assert ear.tokens == spoken(oracle, PROMPT, 8, shelf.artefacts[ref.digest])
    assert shelf.reads == ["module", "other", "module"]


def test_what_went_wrong_when_it_was_read_again_reaches_those_who_waited(
    base: BaseModel, resident: BatchEngine, module: ArtefactRef, oracle: Oracle, shelf: Shelf
) -> None:
    other = shelf.put("other", tiny_artefact(base, 2))
    served, refused, bare = *waiting_for(resident, other, module), start(resident, tiny_request("bare", PROMPT))
    shelf.corrupt.add("module")
    finish(resident)
    assert isinstance(refused.error, ModuleCorrupt)
    assert served.tokens == spoken(oracle, PROMPT, 8, shelf.artefacts["other"])
    assert bare.tokens == spoken(oracle, PROMPT, 8)


def test_one_who_waits_for_a_slot_that_is_evicted_fails_and_brings_nothing_back(resident: BatchEngine, module: ArtefactRef) -> None:
    [ear] = waiting_for(resident, module)
    resident.evict(module.directory, ModuleCorrupt("quarantined"))
    finish(resident)
    assert isinstance(ear.error, ModuleCorrupt)
    assert resident.residency() == {}


def test_what_was_evicted_while_in_use_is_found_by_nobody_new(
    base: BaseModel, make: Make, module: ArtefactRef, oracle: Oracle, shelf: Shelf
) -> None:
    """Of other bytes under the same digest, which only a test has, so that they are told apart; prefixes could not be."""
    old = shelf.artefacts["module"]
    engine = make(slots=2, host_bytes=0, prefix_tokens=0)
    running = start(engine, tiny_request("running", PROMPT, module))
    loads_done(engine)
    engine.step()
    engine.evict(module.directory, DocumentNotFound("deleted"))
    new = shelf.artefacts["module"] = tiny_artefact(base, 2)
    later = start(engine, tiny_request("later", PROMPT, module))
    finish(engine)
    assert running.tokens == spoken(oracle, PROMPT, 8, old)
    assert later.tokens == spoken(oracle, PROMPT, 8, new)


@pytest.mark.parametrize(
    "change", [{"directory": Path("twin")}, {"composition": "other"}, {"digest": "newer"}], ids=lambda change: next(iter(change))
)
def test_only_the_very_artefact_is_found_in_a_slot(
    base: BaseModel, resident: BatchEngine, module: ArtefactRef, shelf: Shelf, change: dict[str, Any]
) -> None:
    shelf.put("newer", tiny_artefact(base, 2))
    answer(resident, tiny_request("other", PROMPT, replace(module, **change)))
    assert len(shelf.reads) == 2


def test_host_memory_comes_first_and_counts_as_before(make: Make, module: ArtefactRef) -> None:
    engine = make()
    for number in range(3):
        answer(engine, tiny_request(str(number), PROMPT, module))
    stats = engine.stats()
    assert (stats["host_hits"], stats["host_misses"], stats["slot_hits"], stats["slot_misses"]) == (2, 1, 2, 1)
