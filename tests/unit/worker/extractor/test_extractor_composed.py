"""Where the weights of a composition begin, and how far they are said to have gone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from server.engine.base_model import BaseModel
from server.modules.composition import Composition
from tests.support.tiny_models import tiny_artefact, tiny_base
from worker.extractor.composed import composed
from worker.extractor.pipeline import spread
from worker.extractor.recipe import ExtractorRecipe

HALF = ExtractorRecipe(rank=4, alpha=6.0, start_weight=0.5)


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return tiny_base()


def test_without_a_start_they_begin_as_the_recipe_says(base: BaseModel) -> None:
    with composed(base, HALF, 0, {0: tiny_artefact(base, 1)}) as student:
        begun = student.composition()
    assert {*begun.w_km.tolist(), *begun.w_ke.tolist()} == {0.5}


def test_a_readers_weight_of_modules_that_it_never_saw_stays_one(base: BaseModel) -> None:
    with composed(base, HALF, 0, {}) as student:
        begun = student.composition()
        assert "w_km" not in student.parameters()
    assert (set(begun.w_km.tolist()), set(begun.w_ke.tolist())) == ({1.0}, {0.5})


def test_with_a_start_they_begin_where_it_ended(base: BaseModel) -> None:
    start = tiny_artefact(base, 2, rank=4, extractor=True)
    assert start.composition is not None
    with composed(base, HALF, 0, {0: tiny_artefact(base, 1)}, start) as student:
        begun = student.composition()
        a, _ = student.factors()
    assert torch.equal(begun.w_km, start.composition.w_km)
    assert torch.equal(begun.w_ke, start.composition.w_ke)
    assert all(torch.equal(a[layer], start.a[layer]) for layer in a)


def test_how_far_they_went_counts_from_where_they_began() -> None:
    before = Composition(layers=("a", "b"), w_km=torch.full((2,), 0.5), w_ke=torch.full((2,), 0.5))
    after = replace(before, w_km=torch.tensor([0.52, 1.0]), w_ke=torch.tensor([0.5, 0.46]))
    found = spread(before, after, {"a", "b"})
    assert (found["w_km"]["unlearned"], found["w_ke"]["unlearned"]) == (0.5, 1.0)
    some = spread(before, after, {"b"})
    assert some["w_km"] == {"least": 1.0, "most": 1.0, "mean": 1.0, "unlearned": 0.0}, "in the layers that modules have"
    assert some["w_ke"] == found["w_ke"]
    assert spread(before, after, ()).keys() == {"w_ke"}
