from __future__ import annotations

from typing import Any

import pytest

from server.modules.start import misfit, shape_of
from tests.support.artefacts import extractor_manifest

SHAPE = {"rank": 4, "alpha": 8.0, "scope": "all"}


def test_a_starts_shape_is_what_begins_from_it_must_have() -> None:
    assert shape_of(extractor_manifest()) == SHAPE


@pytest.mark.parametrize("recipe", [{}, {"max_steps": 9}, {"rank": 4, "alpha": 8, "scope": "all"}])
def test_a_recipe_fits_that_says_the_same_or_nothing(recipe: dict[str, Any]) -> None:
    assert misfit(SHAPE, recipe) is None


@pytest.mark.parametrize(
    ("recipe", "why"),
    [
        ({"rank": 16}, "has rank 4 and the recipe has rank 16: leave `rank` out"),
        ({"rank": 4, "alpha": 4.5}, "has alpha 8 and the recipe has alpha 4.5"),
        ({"scope": "answer"}, "has scope `all` and the recipe has scope `answer`"),
    ],
)
def test_what_differs_is_told_with_both_values(recipe: dict[str, Any], why: str) -> None:
    assert why in (misfit(SHAPE, recipe) or "")


def test_what_is_not_known_of_a_start_is_no_difference() -> None:
    assert misfit({"scope": "all"}, {"rank": 16}) is None
