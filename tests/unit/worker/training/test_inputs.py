"""Leftovers are gone on with by the same training alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from server.engine.base_model import BaseModel
from tests.support.tiny_models import tiny_base
from tests.support.tiny_training import RECIPE
from worker.training.inputs import LEFTOVERS, TEXTS, keep_only_of
from worker.training.recipe import Recipe


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return tiny_base()


def left(folder: Path, base: BaseModel, recipe: Recipe = RECIPE, seed: int = 0, **others: Any) -> bool:
    """Whether what the attempt before left is still there."""
    keep_only_of(folder, base, recipe, seed, **others)
    kept = [(folder / name).exists() for name in LEFTOVERS]
    assert len(set(kept)) == 1
    for name in LEFTOVERS:
        (folder / name).mkdir(exist_ok=True)
    (folder / TEXTS).touch()
    return kept[0]


def test_the_same_training_goes_on(base: BaseModel, tmp_path: Path) -> None:
    assert not left(tmp_path, base, extractor=["a", "b", "all"])
    assert left(tmp_path, base, extractor=["a", "b", "all"])
    assert left(tmp_path, base, replace(RECIPE, micro_batch=1), extractor=["a", "b", "all"]), "a smaller micro-batch changes nothing"


@pytest.mark.parametrize(
    "change", [{"recipe": replace(RECIPE, max_steps=9)}, {"seed": 1}, {"extractor": ["other", "b", "all"]}, {"extractor": None}]
)
def test_another_training_begins_anew_but_for_its_texts(base: BaseModel, tmp_path: Path, change: dict[str, Any]) -> None:
    left(tmp_path, base, extractor=["a", "b", "all"])
    assert not left(tmp_path, base, **{"extractor": ["a", "b", "all"], **change})
    assert (tmp_path / TEXTS).exists()


def test_texts_of_another_writer_are_written_again(base: BaseModel, tmp_path: Path) -> None:
    left(tmp_path, base)
    (tmp_path / TEXTS).write_text("of the base")
    assert not left(tmp_path, base, writer="large-model")
    assert (tmp_path / TEXTS).read_text() == "", "made anew"
    (tmp_path / TEXTS).write_text("of the large model")
    assert left(tmp_path, base, writer="large-model")
    assert (tmp_path / TEXTS).read_text() == "of the large model"
    assert not left(tmp_path, base)
    assert (tmp_path / TEXTS).read_text() == ""


def test_texts_of_another_base_are_written_again(base: BaseModel, tmp_path: Path) -> None:
    left(tmp_path, base)
    (tmp_path / TEXTS).write_text("of this base")
    assert not left(tmp_path, replace(base, fingerprint="f" * 64))
    assert (tmp_path / TEXTS).read_text() == ""


def test_leftovers_of_unknown_origin_are_not_used(base: BaseModel, tmp_path: Path) -> None:
    for name in LEFTOVERS:
        (tmp_path / name).mkdir()
    assert not left(tmp_path, base)
