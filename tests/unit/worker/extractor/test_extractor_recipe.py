from __future__ import annotations

from typing import Any

import pytest

from server.errors import InvalidInput
from worker.extractor.recipe import READER, ExtractorRecipe, extractor_recipe


def test_without_modules_it_is_a_reader() -> None:
    assert extractor_recipe({}, modules=False) == READER
    assert extractor_recipe({}, modules=True) == ExtractorRecipe()
    assert extractor_recipe({"max_steps": 3, "learning_rate": 1}, modules=True).max_steps == 3


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
        ({"learn": 1}, "learn in the recipe must be a word"),
        ({"scope": "passages"}, "unknown scope 'passages' in the recipe: use one of all, answer"),
    ],
)
def test_what_cannot_be_trained_is_explained(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        extractor_recipe(overrides, modules=True)
