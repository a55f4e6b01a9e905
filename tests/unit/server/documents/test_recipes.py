"""What the API takes of a recipe is what the trainer knows: the server never imports the worker, so a test holds the two together."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from server.documents.recipes import RecipeChanges, TrainModule
from server.documents.schemas import Preset
from server.errors import InvalidInput
from server.settings import Settings
from worker.synthesis.prompts import SUMMARIES
from worker.training import recipe as trainers
from worker.training.recipe import PRESETS, Recipe, recipe_for

THE_OPERATORS = {"preset", "synthesis_batch", "teacher_cache_bytes"}
"""Of a trainer's recipe: its name, and what the machine has room for."""
SCHEMA: dict[str, dict[str, Any]] = RecipeChanges.model_json_schema()["properties"]


def bounds(name: str) -> dict[str, Any]:
    """A field's JSON schema, without the null that any may be."""
    [found] = [each for each in SCHEMA[name]["anyOf"] if each != {"type": "null"}]
    return dict(found)


def ends(name: str) -> list[Any]:
    """The outermost values that a field takes."""
    schema = bounds(name)
    if "enum" in schema:
        return list(schema["enum"])
    inside = 1e-6 if schema["type"] == "number" else 1
    low = schema["minimum"] if "minimum" in schema else schema["exclusiveMinimum"] + inside
    high = schema["maximum"] if "maximum" in schema else schema["exclusiveMaximum"] - inside
    return [low, high]


def test_a_caller_may_change_all_that_is_not_the_operators() -> None:
    assert set(RecipeChanges.model_fields) == {field.name for field in fields(Recipe)} - THE_OPERATORS


def test_presets_are_the_trainers_and_any_may_be_the_default() -> None:
    assert {str(preset) for preset in Preset} == set(PRESETS)
    assert set(get_args(Settings.model_fields["default_preset"].annotation)) == set(PRESETS)


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_every_value_of_a_preset_may_be_given(preset: str) -> None:
    values = {name: value for name, value in trainers.as_json(PRESETS[preset]).items() if name not in THE_OPERATORS and value is not None}
    assert RecipeChanges(**values).changed() == values
    assert recipe_for(preset, values) == PRESETS[preset]


@pytest.mark.parametrize("name", sorted(RecipeChanges.model_fields))
def test_the_trainer_takes_what_the_api_takes(name: str) -> None:
    for value in ends(name):
        changes = RecipeChanges(**{name: value}).changed()
        assert changes == {name: value}
        assert getattr(recipe_for("quick", changes), name) == value


@pytest.mark.parametrize("name", sorted(trainers._LIMITS))
def test_the_trainer_refuses_what_the_api_refuses_of_a_share(name: str) -> None:
    schema = bounds(name)
    below = schema["exclusiveMinimum"] if "exclusiveMinimum" in schema else schema["minimum"] - 1e-3
    above = schema["exclusiveMaximum"] if "exclusiveMaximum" in schema else schema["maximum"] + 1e-3
    for value in (below, above):
        with pytest.raises(ValidationError):
            RecipeChanges(**{name: value})
        with pytest.raises(InvalidInput, match=name):
            recipe_for("quick", {name: value})


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("objective", trainers.ObjectiveName),
        ("hidden_term", trainers.HiddenTerm),
        ("positions", trainers.Positions),
        ("decay", trainers.Decay),
        ("scope", trainers.ScopeName),
    ],
)
def test_words_are_the_trainers(name: str, words: Any) -> None:
    assert bounds(name)["enum"] == list(get_args(words))


def test_there_are_no_more_seed_prompts_than_that() -> None:
    assert bounds("summary_prompts")["maximum"] == len(SUMMARIES)


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": 7},
        {"preset": "paper"},
        {"teacher_cache_bytes": 1},
        {"max_steps": "8"},
        {"max_steps": 8.5},
        {"max_steps": True},
        {"max_steps": 0},
        {"dropout": 1},
        {"learning_rate": float("nan")},
        {"learning_rate": float("inf")},
        {"objective": "kd"},
        {"objective": ["lm"]},
        {"rank": -1},
        {"summary_prompts": 0},
        {"summaries": 10**30},
    ],
    ids=str,
)
def test_what_is_no_recipe_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        RecipeChanges(**changes)


def test_a_whole_number_is_a_number() -> None:
    assert RecipeChanges(alpha=32, dropout=0).changed() == {"alpha": 32.0, "dropout": 0.0}


def test_a_job_is_told_what_was_given() -> None:
    assert TrainModule().params() == {}
    assert TrainModule(recipe=RecipeChanges(rank=None)).params() == {}
    wanted = TrainModule.model_validate_json('{"preset": "standard", "recipe": {"rank": 8, "alpha": 8}, "seed": 0}')
    assert wanted.params() == {"preset": "standard", "recipe": {"rank": 8, "alpha": 8.0}, "seed": 0}
