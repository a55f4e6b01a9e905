"""Sharing of prefixes proven by a random walk; and that the walk would notice a key that leaves something out."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from server.engine import batch_engine, prefix_keys
from server.engine.prefix_keys import Wears
from server.engine.request import EngineRequest
from tests.support.engine_walk import Shared, Walk, WrongAnswer

STEPS = 400


def walk(seed: int, steps: int = STEPS) -> Walk:
    taken = Walk(seed)
    try:
        taken.run(steps)
    finally:
        taken.close()
    return taken


def test_no_answer_is_wrong_and_nothing_leaks() -> None:
    taken = walk(seed=1)
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
