"""The serving engine as the writer of training texts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from server.engine.base_model import BaseModel
from server.engine.options import EngineOptions
from tests.support.tiny_models import tiny_base
from worker.synthesis.asks import Ask
from worker.synthesis.generator import EngineGenerator

OPTIONS = EngineOptions(max_batch=4, threads=1)
SUMMARY = Ask(context="A bridge is green.", instruction="Sum up.", max_tokens=6, temperature=1.0, top_p=0.9, seed=1)
QUESTION = replace(SUMMARY, instruction="")


@pytest.fixture(scope="module")
def base() -> BaseModel:
    """Long enough for the question prompt, which is some 500 bytes."""
    return replace(tiny_base(), context_limit=2048)


def texts(base: BaseModel, asks: list[Ask]) -> dict[int, str]:
    got: dict[int, str] = {}
    EngineGenerator(base, OPTIONS, lambda: False)(asks, got.__setitem__)
    return got


def test_every_ask_is_answered_by_its_seed_alone(base: BaseModel) -> None:
    """Whatever else runs: so a resumed job gets the very texts that it would have got."""
    asks = [replace(ask, seed=seed) for ask in (SUMMARY, QUESTION) for seed in range(3)]
    together = texts(base, asks)
    assert sorted(together) == list(range(6))
    assert [texts(base, [ask])[0] for ask in asks] == [together[index] for index in range(6)]
    assert len(set(together.values())) > 2


def test_the_base_is_left_as_it_was(base: BaseModel) -> None:
    before = {name: type(module) for name, module in base.model.named_modules()}
    texts(base, [SUMMARY])
    assert {name: type(module) for name, module in base.model.named_modules()} == before


def test_it_stops_within_a_generation(base: BaseModel) -> None:
    asked = 0

    def should_stop() -> bool:
        nonlocal asked
        asked += 1
        return asked > 3

    got: dict[int, str] = {}
    EngineGenerator(base, OPTIONS, should_stop)([replace(SUMMARY, max_tokens=200)] * 8, got.__setitem__)
    assert len(got) < 8
    assert asked == 4
