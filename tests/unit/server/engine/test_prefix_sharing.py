"""Sharing of prefixes proven by a random walk; and that the walk would notice a key that leaves something out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from server.engine import batch_engine, prefix_keys
from server.engine.base_model import BaseModel
from server.engine.prefix_keys import Wears
from server.engine.prompt import Prompt
from server.engine.request import ArtefactRef, EngineRequest, FinishReason, Scope
from server.engine.sequence import Event
from tests.support.engine_walk import Shared, Walk, WrongAnswer
from tests.support.engines import Make, answer, finish, spoken, start
from tests.support.oracle import Oracle
from tests.support.tiny_models import Shelf, tiny_artefact, tiny_prompt, tiny_request

STEPS = 400


def walk(seed: int, steps: int = STEPS) -> Walk:
    taken = Walk(seed)
    try:
        taken.run(steps)
    finally:
        taken.close()
    return taken


def test_no_answer_is_wrong_and_nothing_leaks() -> None:
    taken = walk(seed=1, steps=600)
    assert taken.counts["answers"] > 50
    assert taken.counts["second turns"] > 5
    assert taken.engine.stats()["prefix_hit_tokens"] > 300
    assert taken.engine.stats()["prefix_evicted_tokens"] > 300


def without_adapters(request: EngineRequest) -> Wears:
    return lambda position: b""


def bare_by_the_base_alone(request: EngineRequest) -> Wears:
    """As if no adapter ever acted on the bare part."""
    whole, bare = prefix_keys.adapter_ids(request), len(request.prompt.bare)
    return lambda position: whole(position) if position >= bare else b""


@pytest.mark.parametrize("mutation", [without_adapters, bare_by_the_base_alone])
def test_a_key_without_the_adapters_gives_wrong_answers(
    monkeypatch: pytest.MonkeyPatch, mutation: Callable[[EngineRequest], Wears]
) -> None:
    monkeypatch.setattr(batch_engine, "adapter_ids", mutation)
    with pytest.raises(WrongAnswer):
        walk(seed=2)


def test_a_key_without_the_tenant_shares_across_tenants(monkeypatch: pytest.MonkeyPatch) -> None:
    root_key = prefix_keys.root_key
    monkeypatch.setattr(batch_engine, "root_key", lambda tenant, fingerprint, dtype: root_key("", fingerprint, dtype))
    with pytest.raises(Shared):
        walk(seed=3)


PASSAGES = tiny_prompt(7, bare=40, adapted=0).bare


def asking(name: str, question: int, tenant: str = "tenant", **worn: ArtefactRef) -> EngineRequest:
    prompt = Prompt(bare=PASSAGES, adapted=tiny_prompt(question, bare=1, adapted=6).adapted)
    return replace(tiny_request(name, prompt, max_tokens=3, **worn), tenant=tenant)


def test_questions_over_the_same_passages_read_them_once(make: Make, oracle: Oracle) -> None:
    """All at once: those that find another at it wait a step and take it over."""
    engine = make(block_tokens=8, step_tokens=24)
    ears = [start(engine, asking(str(number), number)) for number in range(6)]
    finish(engine)
    assert [ear.tokens for ear in ears] == [spoken(oracle, asking("", number).prompt, 3) for number in range(6)]
    assert engine.stats()["prompt_tokens"] == 40 + 6 * 6
    assert engine.stats()["prefix_hit_tokens"] == 5 * 40


def test_two_tenants_share_nothing(make: Make) -> None:
    engine = make(block_tokens=8)
    for tenant in ("acme", "globex"):
        answer(engine, asking("1", 1, tenant))
    assert engine.stats()["prefix_hit_tokens"] == 0


@pytest.mark.parametrize(("scope", "shared"), [(Scope.ANSWER, 40), (Scope.ALL, 0)])
def test_passages_are_shared_between_modules_that_do_not_act_on_them(
    base: BaseModel, make: Make, oracle: Oracle, shelf: Shelf, scope: Scope, shared: int
) -> None:
    engine = make(block_tokens=8)
    modules = [tiny_artefact(base, seed, scope=scope) for seed in range(2)]
    for number, module in enumerate(modules):
        request = asking(str(number), 1, module=shelf.put(f"module-{number}", module))
        assert answer(engine, request).tokens == spoken(oracle, request.prompt, 3, module)
    assert engine.stats()["prefix_hit_tokens"] == shared


def test_the_next_turn_computes_only_what_is_new(make: Make, oracle: Oracle) -> None:
    engine = make(block_tokens=4)
    first = asking("1", 1)
    told = answer(engine, first).tokens
    prompt = Prompt(bare=PASSAGES, adapted=(*first.prompt.adapted, *told, 5, 6, 7))
    assert answer(engine, replace(first, prompt=prompt)).tokens == spoken(oracle, prompt, 3)
    assert engine.stats()["prefix_hit_tokens"] == 48


def test_a_prompt_that_is_known_as_a_whole_still_has_its_last_token_computed(make: Make, oracle: Oracle) -> None:
    engine, prompt = make(block_tokens=8), Prompt(bare=PASSAGES, adapted=())
    request = tiny_request("1", prompt, max_tokens=3)
    for _ in range(2):
        assert answer(engine, request).tokens == spoken(oracle, prompt, 3)
    assert engine.stats()["prefix_hit_tokens"] == 32


def test_what_is_scored_shares_the_prompt_and_nothing_behind_it(make: Make) -> None:
    engine = make(block_tokens=4)
    told: list[Event] = []
    for number in range(3):
        engine.add(engine.scoring(asking(str(number), 1), ["one answer", "another"], told.append))
        finish(engine)
    assert told[0] == told[1] == told[2]
    assert engine.stats()["prefix_hit_tokens"] == 2 * 44


def test_a_cancelled_request_leaves_what_it_read(make: Make) -> None:
    engine = make(block_tokens=8, step_tokens=16)
    ear = start(engine, asking("1", 1))
    engine.step()
    engine.cancel("1")
    finish(engine)
    assert ear.reason is FinishReason.CANCELLED
    answer(engine, asking("2", 2))
    assert engine.stats()["prefix_hit_tokens"] == 16


def test_a_forgotten_tenant_starts_anew(make: Make) -> None:
    engine = make(block_tokens=8)
    for _ in range(2):
        answer(engine, asking("1", 1))
        engine.forget("tenant")
    assert engine.stats()["prefix_hit_tokens"] == 0
    assert engine.stats()["prefix_blocks"] == 0


def test_what_a_forgotten_tenants_requests_go_on_to_compute_is_not_kept(make: Make, oracle: Oracle) -> None:
    """A document is deleted while a question over its passages is being answered."""
    engine = make(block_tokens=8, step_tokens=16)
    request = asking("1", 1)
    ear = start(engine, request)
    engine.step()
    engine.forget("tenant")
    finish(engine)
    assert ear.tokens == spoken(oracle, request.prompt, 3)
    assert engine.stats()["prefix_blocks"] == 0


def test_without_a_budget_nothing_is_shared(make: Make) -> None:
    engine = make(prefix_tokens=0)
    for _ in range(2):
        answer(engine, asking("1", 1))
    assert engine.stats()["prefix_hit_tokens"] == 0
