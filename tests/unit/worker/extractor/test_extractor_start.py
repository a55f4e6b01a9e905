"""Which extractor a job begins from, and which recipes can."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from server.engine.base_model import BaseModel
from server.engine.request import ArtefactRef, Scope
from server.errors import InvalidInput, ModuleCorrupt
from server.modules.artefact import ADAPTER, write_artefact
from server.modules.start import StartName
from tests.support.tiny_models import tiny_artefact, tiny_base
from worker.extractor.recipe import ExtractorRecipe, extractor_recipe
from worker.extractor.start import chosen_start, manifest_of, proven_start

SHAPE: dict[str, Any] = {"rank": 4, "alpha": 6.0}


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return tiny_base()


@pytest.fixture
def active(base: BaseModel, tmp_path: Path) -> ArtefactRef:
    return written(base, tmp_path / "active")


def written(base: BaseModel, directory: Path, extractor: bool = True, scope: Scope = Scope.ALL, **changes: Any) -> ArtefactRef:
    """Of rank 4 and alpha 6."""
    made = tiny_artefact(base, 0, rank=4, scope=scope, extractor=extractor)
    described = replace(made.manifest, **changes)
    return write_artefact(directory, a=made.a, b=made.b, manifest=described, base_model_name="tiny", composition=made.composition)


@pytest.mark.parametrize("wanted", [None, "active"])
@pytest.mark.parametrize("overrides", [{}, {"learn": "weights"}, {"max_steps": 9, **SHAPE, "scope": "all"}])
def test_an_active_extractor_that_fits_is_the_start(
    base: BaseModel, active: ArtefactRef, wanted: StartName | None, overrides: dict[str, Any]
) -> None:
    assert chosen_start(base, wanted, active, overrides, []) == active


def test_nothing_is_nothing(base: BaseModel, active: ArtefactRef) -> None:
    assert chosen_start(base, "nothing", active, {}, []) is None
    assert chosen_start(base, None, None, {}, []) is None
    assert manifest_of(None) is None


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"rank": 16}, "has rank 4 and the recipe has rank 16"),
        ({"alpha": 16.0}, "has alpha 6 and the recipe has alpha 16"),
        ({"scope": "answer"}, "has scope `all` and the recipe has scope `answer`"),
    ],
)
def test_one_that_does_not_fit_is_refused_only_where_it_was_asked_for(
    base: BaseModel, active: ArtefactRef, overrides: dict[str, Any], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        assert chosen_start(base, None, active, overrides, []) is None
    assert message in caplog.text
    with pytest.raises(InvalidInput, match=message):
        chosen_start(base, "active", active, overrides, [])
    with pytest.raises(InvalidInput, match=message):
        chosen_start(base, None, active, {**overrides, "learn": "weights"}, [])


@pytest.mark.parametrize(("wanted", "overrides"), [("active", {}), (None, {"learn": "weights"})])
def test_one_that_is_not_there_is_refused_where_it_was_asked_for(
    base: BaseModel, wanted: StartName | None, overrides: dict[str, Any]
) -> None:
    with pytest.raises(InvalidInput, match="no extractor is active to start from"):
        chosen_start(base, wanted, None, overrides, [])


def test_one_of_another_base_model_does_not_fit(base: BaseModel, tmp_path: Path) -> None:
    foreign = written(base, tmp_path / "foreign", base_fingerprint="f" * 64)
    assert chosen_start(base, None, foreign, {}, []) is None
    with pytest.raises(InvalidInput, match="another base model"):
        chosen_start(base, "active", foreign, {}, [])
    with pytest.raises(InvalidInput, match="another base model"):
        proven_start(base, foreign, ExtractorRecipe(rank=4, alpha=6.0))


def test_one_whose_files_are_damaged_or_gone_does_not_keep_others_from_training(base: BaseModel, active: ArtefactRef) -> None:
    (active.directory / ADAPTER).write_bytes(b"damaged")
    gone = replace(active, directory=active.directory / "gone")
    for unusable, code in ((active, "module_corrupt"), (gone, "module_missing")):
        assert chosen_start(base, None, unusable, {}, []) is None
        with pytest.raises(InvalidInput, match=rf"cannot be used \({code}\)"):
            chosen_start(base, "active", unusable, {}, [])
    with pytest.raises(ModuleCorrupt):
        proven_start(base, active, ExtractorRecipe(rank=4, alpha=6.0))


def test_modules_of_another_scope_are_learned_over_from_nothing_unless_it_is_said(base: BaseModel, tmp_path: Path) -> None:
    answer = written(base, tmp_path / "answer", scope=Scope.ANSWER)
    modules = [written(base, tmp_path / "module", extractor=False)]
    assert chosen_start(base, None, answer, {}, modules) is None
    assert chosen_start(base, None, answer, {}, []) == answer
    assert chosen_start(base, None, answer, {"scope": "answer"}, modules) == answer, "the training itself says that they do not go together"


def test_a_recipe_of_the_starts_shape_is_proven_and_another_is_not(base: BaseModel, active: ArtefactRef) -> None:
    recipe = extractor_recipe({}, modules=False, start=manifest_of(active))
    assert (recipe.rank, recipe.alpha) == (4, 6.0)
    assert proven_start(base, active, recipe).manifest.rank == 4
    with pytest.raises(InvalidInput, match="has alpha 6 and the recipe has alpha 16"):
        proven_start(base, active, replace(recipe, alpha=16.0))
