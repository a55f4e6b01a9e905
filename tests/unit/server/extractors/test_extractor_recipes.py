"""What the API takes of an extractor's recipe is what the trainer knows."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

import pytest
from pydantic import ValidationError

from server.extractors.recipes import MOST_EXAMPLES, ExtractorRecipeChanges
from worker.extractor.recipe import MOST_EXAMPLES as TRAINERS
from worker.extractor.recipe import READER, ExtractorRecipe, extractor_recipe


def test_a_caller_may_change_every_field() -> None:
    assert set(ExtractorRecipeChanges.model_fields) == {field.name for field in fields(ExtractorRecipe)}
    assert MOST_EXAMPLES == TRAINERS


@pytest.mark.parametrize("recipe", [ExtractorRecipe(), READER])
def test_every_default_may_be_given(recipe: ExtractorRecipe) -> None:
    values = asdict(recipe)
    assert ExtractorRecipeChanges(**values).changed() == values
    assert extractor_recipe(values, modules=True) == recipe


@pytest.mark.parametrize(
    "values",
    [
        {"speed": 1},
        {"rank": 10**9},
        {"rank": "8"},
        {"dropout": 5.0},
        {"learning_rate": -1.0},
        {"alpha": 0.0},
        {"decay": "never"},
        {"gate_improvement": -1.0},
        {"max_steps": 100_000, "batch_size": 256},
        {"held_out": 1.0},
        {"start_weight": -0.5},
    ],
)
def test_what_no_training_could_end_well_with_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ExtractorRecipeChanges(**values)
