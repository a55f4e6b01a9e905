"""What of the teacher is stored when not all of it fits."""

from __future__ import annotations

import logging
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from server.engine.base_model import BaseModel
from server.errors import InvalidInput
from tests.support.tiny_models import EOS, tiny_base
from tests.support.tiny_training import CPU, RECIPE, tiny_pairs
from worker.training.budget import Sizes, kept_states, sizes_of, within_budget
from worker.training.examples import Example, to_examples
from worker.training.objectives.objective import Data
from worker.training.teacher import TeacherCache, run_teacher

DEEP = Sizes(states=30, layer_bytes=64, final_bytes=128)


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return tiny_base()


@pytest.fixture(scope="module")
def examples(base: BaseModel) -> list[Example]:
    return to_examples(base.tokenizer, tiny_pairs(40), EOS)


@pytest.fixture
def data(examples: list[Example]) -> Data:
    return Data(training=examples[8:], held_out=examples[:8], counts={"already": 1})


@pytest.mark.parametrize(("every", "count", "first"), [(1, 30, 0), (2, 15, 1), (3, 10, 2), (4, 8, 1)])
def test_the_last_state_is_always_kept(every: int, count: int, first: int) -> None:
    kept = kept_states(30, every)
    assert (len(kept), kept[0], kept[-1]) == (count, first, 29)


@pytest.mark.parametrize("every", [1, 2, 3, 4])
def test_fewer_layers_come_before_fewer_examples(data: Data, examples: list[Example], every: int) -> None:
    needed = DEEP.of(examples, len(kept_states(30, every)))
    fitting, kept = within_budget(data, DEEP, needed, least=4)
    assert kept == kept_states(30, every)
    assert (fitting.training, fitting.held_out) == (data.training, data.held_out)
    assert fitting.counts == {"already": 1, "teacher_states": len(kept), "left_out": 0}


def test_then_examples_are_left_out_evenly(data: Data, examples: list[Example], caplog: pytest.LogCaptureFixture) -> None:
    budget = DEEP.of(examples, 8) // 2
    with caplog.at_level(logging.WARNING):
        fitting, kept = within_budget(data, DEEP, budget, least=4)
    assert len(kept) == 8
    assert 14 <= len(fitting.training) <= 16
    assert 3 <= len(fitting.held_out) <= 4
    places = [data.training.index(example) for example in fitting.training]
    assert all(1 <= later - earlier <= 3 for earlier, later in pairwise(places))
    assert fitting.counts["left_out"] == 40 - len(fitting.training) - len(fitting.held_out)
    assert 0.8 * budget < DEEP.of([*fitting.training, *fitting.held_out], 8) <= budget
    assert "8 of 30 states a token" in caplog.text


def test_one_that_holds_next_to_nothing_is_refused(data: Data) -> None:
    with pytest.raises(InvalidInput, match="teacher_cache_bytes of 1000 holds too few examples"):
        within_budget(data, DEEP, 1000, least=4)


@pytest.mark.parametrize("every", [1, 2])
def test_the_sizes_are_those_of_the_files(base: BaseModel, data: Data, examples: list[Example], tmp_path: Path, every: int) -> None:
    """At most what was reckoned, and not much less. An example that is there twice is stored once."""
    sizes = sizes_of(base, RECIPE)
    kept = kept_states(sizes.states, every)
    cache = TeacherCache(tmp_path, kept=kept)
    run_teacher(base.model.base_model, [*examples, examples[0]], cache, CPU, lambda done, total: None)
    stored = sum(file.stat().st_size for file in tmp_path.iterdir())
    reckoned = sizes.of([*examples, examples[0]], len(kept))
    assert 0.75 * reckoned < stored <= reckoned
    layers, final = cache.get(examples[:2], CPU)
    assert layers.shape[0] == len(kept)
    torch.testing.assert_close(layers[-1].float(), final, atol=2e-2, rtol=2e-2)


def test_the_embeddings_are_a_state_too(base: BaseModel) -> None:
    assert sizes_of(base, replace(RECIPE, hidden_term="mean_with_embeddings")).states == sizes_of(base, RECIPE).states + 1 == 3
