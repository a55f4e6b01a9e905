from __future__ import annotations

import math
from typing import Any

import pytest

from server.errors import InvalidInput
from tests.support.artefacts import extractor_manifest
from worker.extractor.recipe import READER, ExtractorRecipe, extractor_recipe


def test_without_modules_it_is_a_reader() -> None:
    assert extractor_recipe({}, modules=False) == READER
    assert extractor_recipe({}, modules=True) == ExtractorRecipe()
    assert extractor_recipe({"max_steps": 3, "learning_rate": 1}, modules=True).max_steps == 3


def test_rank_alpha_and_scope_are_the_starts() -> None:
    start = extractor_manifest(rank=8, alpha=32.0, scope="answer")
    for overrides in ({}, {"rank": 8, "alpha": 32, "scope": "answer"}):
        recipe = extractor_recipe(overrides, modules=True, start=start)
        assert (recipe.rank, recipe.alpha, recipe.scope, recipe.max_steps) == (8, 32.0, "answer", ExtractorRecipe().max_steps)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"rank": 16}, "starts from has rank 8 and the recipe has rank 16"),
        ({"alpha": 16.0}, "starts from has alpha 32 and the recipe has alpha 16"),
        ({"scope": "all"}, "starts from has scope `answer` and the recipe has scope `all`"),
    ],
)
def test_what_the_start_does_not_have_is_refused(overrides: dict[str, Any], message: str) -> None:
    start = extractor_manifest(rank=8, alpha=32.0, scope="answer")
    with pytest.raises(InvalidInput, match=message):
        extractor_recipe(overrides, modules=False, start=start)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"speed": 1}, "not fields of an extractor's recipe: speed"),
        ({"learn": "nothing"}, "unknown learn 'nothing'"),
        ({"unanswerable": 1.5}, "unanswerable is a share"),
        ({"max_steps": 0}, "max_steps must be at least 1"),
        ({"rank": 10**9}, "rank must be at least 1 and at most 256"),
        ({"max_steps": 100_000, "batch_size": 256}, "at most 200000 examples"),
        ({"dropout": 5.0}, "dropout must be at least 0"),
        ({"learning_rate": -1.0}, "learning_rate must be above 0"),
        ({"decay": "never"}, "unknown decay 'never'"),
        ({"max_steps": "many"}, "max_steps in the recipe must be a number, not 'many'"),
        ({"max_steps": 1.5}, "max_steps in the recipe must be a number"),
        ({"max_steps": True}, "max_steps in the recipe must be a number"),
        ({"start_weight": -0.1}, "start_weight must be at least 0"),
        ({"start_weight": math.nan}, "start_weight must be at least 0"),
        ({"learn": 1}, "learn in the recipe must be a word"),
        ({"scope": "passages"}, "unknown scope 'passages' in the recipe: use one of all, answer"),
    ],
)
def test_what_cannot_be_trained_is_explained(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        extractor_recipe(overrides, modules=True)
