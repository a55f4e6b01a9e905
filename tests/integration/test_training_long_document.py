"""A document of a hundred thousand tokens: what it costs is bounded by the recipe, not by its length."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from server.engine.base_model import BaseModel
from server.engine.options import EngineOptions
from tests.support.memory import PeakMemory
from tests.support.tiny_models import tiny_base
from worker.synthesis.asks import Ask
from worker.training import pipeline
from worker.training.pipeline import TrainingSpec, train
from worker.training.recipe import QUICK

BUDGET = 300_000
RECIPE = replace(
    QUICK,
    rank=4,
    chunk_tokens=256,
    max_synthesis=100,
    max_steps=2,
    evaluate_every=2,
    teacher_cache_bytes=BUDGET,
    gate_improvement=-1e6,
    guard=0.12,
)
SENTENCE = "The gate number {} of the old house is painted in the colour {}. "
GROWTH = 64 * 1024**2
"""Bytes that a document thirty times as long may take more."""


class Writer:
    """In place of the engine."""

    def __init__(self, *_: object) -> None: ...

    def __call__(self, asks: Sequence[Ask], on_finished: Callable[[int, str], None]) -> None:
        for index, ask in enumerate(asks):
            words = ask.context.split() or ["of", "no", "document", "0"]
            pair = f" Which colour has the gate number {words[3]}?\nAnswer: the colour {words[-1]}\n"
            on_finished(index, f"The gates {words[3]} are painted, it says." if ask.instruction else pair)


@dataclass(frozen=True)
class Run:
    data: dict[str, Any]
    peak_bytes: int
    teacher_bytes: int


@pytest.fixture
def base(monkeypatch: pytest.MonkeyPatch) -> BaseModel:
    monkeypatch.setattr(pipeline, "EngineGenerator", Writer)
    return tiny_base()


def run(base: BaseModel, directory: Path, tokens: int) -> Run:
    """The tokeniser's tokens are bytes."""
    sentences = (SENTENCE.format(number, number) for number in range(tokens))
    text = ""
    while len(text) < tokens:
        text += next(sentences)
    spec = TrainingSpec(text=text, title="Gates", revision_sha256="1" * 64, recipe=RECIPE, seed=3, directory=directory, attempt=1)
    with PeakMemory(os.getpid(), every_seconds=0.2) as memory:
        trained = train(base, spec, EngineOptions(), lambda question: [], lambda *report: None, lambda: False, lambda gate: None)
    manifest = json.loads((trained.artefact.directory / "manifest.json").read_text())
    return Run(manifest["data"], memory.peak_bytes, sum(file.stat().st_size for file in (directory / "teacher").iterdir()))


def test_it_trains_in_the_memory_and_on_the_disk_of_a_shorter_one(base: BaseModel, tmp_path: Path) -> None:
    short, long = run(base, tmp_path / "short", 3_000), run(base, tmp_path / "long", 100_000)
    assert long.data["generations"] == RECIPE.max_synthesis
    assert long.data["recitation"] <= RECIPE.max_synthesis
    assert long.data["steps"] == 2
    assert long.data["left_out"] > 0, "or the budget is no limit"
    assert 0.8 * BUDGET < long.teacher_bytes <= BUDGET
    assert long.peak_bytes < short.peak_bytes + GROWTH
