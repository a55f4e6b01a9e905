"""What a table says of its making."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.engine.base_model import BaseModel
from tests.support.artefacts import write_extractor
from tests.support.tiny_models import tiny_base
from worker.evaluation.answers import Remembered, Results
from worker.evaluation.artefacts import TrainedArtefacts, extractor_of
from worker.evaluation.rows import lines_of
from worker.evaluation.run import in_words, recipes_of
from worker.evaluation.runner import Setting
from worker.training.recipe import Recipe, as_json


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return tiny_base()


def setting(base: BaseModel, cache: Path, extractor: Path | None = None) -> Setting:
    artefacts = TrainedArtefacts(
        base,
        cache,
        preset="quick",
        overrides={"rank": 4, "lm": {"max_steps": 9}},
        seed=0,
        retriever=lambda document: pytest.fail("nothing was to be trained"),
        passages="",
        on_progress=lambda doing, done, total: None,
        extractor=extractor_of(extractor) if extractor else None,
    )
    return Setting(
        base=base,
        documents=(),
        artefacts=artefacts,
        retriever=lambda document: pytest.fail("nothing was to be asked"),
        readers=lambda context: pytest.fail("nothing was to be read"),
        remembered=Remembered(base, Results(cache / "answers.jsonl")),
        on_progress=lambda doing, done, total: None,
    )


def test_every_field_of_each_recipe_is_told(base: BaseModel, tmp_path: Path) -> None:
    """With what base and objective decide: passages are cut for a small base, and `lm` writes nothing."""
    rows = ["base", "KM_LM", "KM_mixed", "RAG+KM", "KM_mixed(worn)+KE"]
    recipes = recipes_of(setting(base, tmp_path), lines_of(rows, [1]))
    assert list(recipes) == ["lm", "mixed", "mixed (worn)"]
    fields = set(as_json(Recipe(preset="quick", objective="mixed")))
    assert all(set(recipe) == fields for recipe in recipes.values())
    lm, mixed, worn = recipes.values()
    assert (lm["rank"], lm["max_steps"], lm["summaries"], lm["chunk_tokens"]) == (4, 9, 0, 512)
    assert (mixed["rank"], mixed["max_steps"], mixed["summaries"]) == (4, 64, 2)
    assert worn["learning_rate"] == mixed["learning_rate"] / 2
    assert recipes_of(setting(base, tmp_path), lines_of(["base", "KE"], [])) == {}


def test_an_extractor_is_named_by_its_digests(base: BaseModel, tmp_path: Path) -> None:
    ref = write_extractor(tmp_path / "ke")
    assert ref.composition is not None
    made = setting(base, tmp_path, tmp_path / "ke").artefacts
    assert in_words(made.extractor) == in_words(made.worn_extractor)
    assert in_words(made.extractor) == f"ke, lora {ref.digest[:16]}, composition {ref.composition[:16]}"
    assert in_words(setting(base, tmp_path).artefacts.extractor) == "none"
