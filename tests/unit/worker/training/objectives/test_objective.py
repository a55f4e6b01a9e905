"""What the pipeline relies on, whatever the objective."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest

from tests.support.tiny_document import document
from worker.training.objectives.registry import OBJECTIVES, objective_of
from worker.training.recipe import PRESETS, QUICK, ObjectiveName, Recipe, for_base

NAMES = get_args(ObjectiveName)


def test_every_name_of_a_recipe_has_one() -> None:
    assert tuple(OBJECTIVES) == NAMES
    assert [type(objective_of(replace(QUICK, objective=name))).__name__.lower() for name in NAMES] == list(NAMES)


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_the_presets_make_just_what_they_train_on(preset: Recipe) -> None:
    assert objective_of(preset).narrowed(preset) == preset


@pytest.mark.parametrize(
    ("name", "counts"), [("lm", (0, 0, 0)), ("pit", (2, 0, 0)), ("ddcd", (0, 0, 0)), ("sdcd", (2, 0, 0)), ("mixed", (2, 4, 2))]
)
def test_no_text_is_made_that_nobody_trains_on(name: ObjectiveName, counts: tuple[int, int, int]) -> None:
    recipe = replace(QUICK, objective=name)
    narrowed = objective_of(recipe).narrowed(recipe)
    assert (narrowed.summaries, narrowed.questions, narrowed.recitations) == counts
    assert replace(narrowed, summaries=2, questions=4, recitations=2) == recipe


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("text", ["", "x", "xy"])
def test_a_document_of_next_to_nothing_is_no_error(name: ObjectiveName, text: str) -> None:
    recipe = for_base(replace(QUICK, objective=name), 1)
    data = OBJECTIVES[name].data(document(text, chunks=[text] if text else []), recipe, 0)
    assert len(data.training) < OBJECTIVES[name].least or not data.held_out or (name, text) in [("lm", "x"), ("lm", "xy")]


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_makes_the_same_examples(name: ObjectiveName) -> None:
    recipe = for_base(replace(QUICK, objective=name), 1)
    first, again, other = (OBJECTIVES[name].data(document(), recipe, seed) for seed in (1, 1, 2))
    assert first == again
    assert (first == other) is (name != "ddcd")
