"""The train spine on a tiny model: from a text to an artefact that serving would accept, and again after a stop."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from server.engine.base_model import BaseModel, adapted_layers
from server.engine.options import EngineOptions
from server.errors import GateNotPassed, InvalidInput, NothingToLearn
from server.modules.artefact import read_artefact
from tests.support.tiny_models import FINGERPRINT, tiny_base
from tests.support.tiny_training import RECIPE
from worker.synthesis.asks import Ask
from worker.training import pipeline
from worker.training.adapted import layers_to_train
from worker.training.fit import Stopped
from worker.training.gate import Gate
from worker.training.pipeline import Trained, TrainingSpec, train
from worker.training.recipe import ObjectiveName, Recipe, as_json

SMALL = replace(RECIPE, window_tokens=64, chunk_tokens=64, questions=1, question_tokens=8, recitations=1)
TEXT = "\n\n".join(f"The gate {i} is painted in colour {i}." for i in range(8))


class Writer:
    """In place of the engine: a question about each window, and a record of what was asked."""

    asked: list[Ask]

    def __init__(self, base: BaseModel, options: EngineOptions, should_stop: Callable[[], bool]) -> None:
        self._should_stop = should_stop

    def __call__(self, asks: Sequence[Ask], on_finished: Callable[[int, str], None]) -> None:
        for index, ask in enumerate(asks):
            if self._should_stop():
                return
            Writer.asked.append(ask)
            number = ask.context.split()[2] if ask.context else "of no document"
            on_finished(index, f" Which gate has colour {number}?\nAnswer: The gate {number}\n")


@pytest.fixture(autouse=True)
def writer(monkeypatch: pytest.MonkeyPatch) -> None:
    Writer.asked = []
    monkeypatch.setattr(pipeline, "EngineGenerator", Writer)


class Job:
    """A job's directory and what its callbacks heard; `stop_at` ends an attempt at a report of (stage, done)."""

    def __init__(self, directory: Path, base: BaseModel, recipe: Recipe = SMALL, text: str = TEXT) -> None:
        self.directory, self.base = directory, base
        self.gates: list[Gate] = []
        self.attempts = 0
        self.passages = [TEXT[:40]]
        self._recipe, self._text = recipe, text

    def attempt(self, stop_at: tuple[str, int] | None = None) -> Trained:
        self.attempts += 1
        self.heard: list[tuple[str, int, int]] = []

        def report(stage: str, done: int, total: int, unit: str) -> None:
            self.heard.append((stage, done, total))
            if (stage, done) == stop_at:
                raise Stopped

        spec = TrainingSpec(
            text=self._text,
            title="Gates",
            revision_sha256="1" * 64,
            recipe=self._recipe,
            seed=3,
            directory=self.directory,
            attempt=self.attempts,
        )
        return train(self.base, spec, EngineOptions(), lambda question: self.passages, report, lambda: False, self.gates.append)

    def steps(self, stage: str) -> list[int]:
        return [done for name, done, _ in self.heard if name == stage]


@dataclass(frozen=True, kw_only=True)
class Whole:
    job: Job
    trained: Trained
    before: dict[str, Tensor]
    """The base model's tensors before it was trained on."""


@pytest.fixture
def base() -> BaseModel:
    return tiny_base()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """A job that nobody stopped, and what it came to."""
    base = tiny_base()
    before = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    Writer.asked = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(pipeline, "EngineGenerator", Writer)
        job = Job(tmp_path_factory.mktemp("whole"), base)
        return Whole(job=job, trained=job.attempt(), before=before)


def test_the_artefact_is_one_that_serving_accepts(whole: Whole) -> None:
    base, ref = whole.job.base, whole.trained.artefact
    assert ref.directory == whole.job.directory / "attempt-1" / "artefact"
    shapes = {name: (layer.out_features, layer.in_features) for name, layer in adapted_layers(base.model).items()}
    artefact = read_artefact(ref, FINGERPRINT, shapes, SMALL.rank)
    assert artefact.manifest.targets == tuple(sorted(shapes))


@pytest.mark.parametrize(("adapted", "layers"), [("mlp", 6), ("attention", 8), ("upper", 7)])
def test_a_module_of_some_layers_is_one_that_serving_accepts_too(tmp_path: Path, base: BaseModel, adapted: Any, layers: int) -> None:
    job = Job(tmp_path, base, replace(SMALL, adapted=adapted, gate_improvement=0.05))
    ref = job.attempt().artefact
    shapes = {name: (layer.out_features, layer.in_features) for name, layer in adapted_layers(base.model).items()}
    artefact = read_artefact(ref, FINGERPRINT, shapes, SMALL.rank)
    assert set(artefact.a) == set(artefact.manifest.targets) == set(layers_to_train(base.model, adapted))
    assert len(artefact.a) == layers
    assert job.gates[0].loss_after < job.gates[0].loss_before


def test_layers_that_a_models_names_do_not_tell_are_refused_before_any_work(
    tmp_path: Path, base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.training.adapted.adapted_layers", lambda model: {"mixer": model.lm_head})
    with pytest.raises(InvalidInput, match="do not tell"):
        Job(tmp_path, base, replace(SMALL, adapted="mlp")).attempt()
    assert Writer.asked == []


def test_the_base_is_left_as_it_was(whole: Whole) -> None:
    after = whole.job.base.model.state_dict()
    assert after.keys() == whole.before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in whole.before.items())


def test_the_manifest_tells_how_it_was_made_and_its_verdict(whole: Whole) -> None:
    job, trained = whole.job, whole.trained
    manifest: dict[str, Any] = json.loads((trained.artefact.directory / "manifest.json").read_text())
    assert manifest["recipe"] == as_json(SMALL)
    assert (manifest["seed"], manifest["document_revision"], manifest["objective"]) == (3, "1" * 64, "mixed")
    data = manifest["data"]
    assert (data["question"], data["recitation"], data["generations"], data["steps"]) == (8, 8, 8, 12)
    assert data["training"] + data["held_out"] == 16
    assert manifest["gate"] == asdict(trained.gate)
    assert manifest["gate"]["passed"] is True
    assert manifest["gate"]["questions"] == data["held_out"] == 2
    assert manifest["held_out_loss_after"] == pytest.approx(trained.gate.loss_after, rel=1e-5)
    assert manifest["held_out_loss_before"] == pytest.approx(trained.gate.loss_before, rel=1e-5)
    assert job.gates == [trained.gate]


def test_stages_are_reported_in_order_and_to_their_end(whole: Whole) -> None:
    job = whole.job
    assert list(dict.fromkeys(stage for stage, _, _ in job.heard)) == ["synthesising", "teaching", "fitting", "gating"]
    for stage in ("synthesising", "teaching", "fitting", "gating"):
        done = [(done, total) for name, done, total in job.heard if name == stage]
        assert done == sorted(done)
        assert done[-1][0] == done[-1][1]


@pytest.mark.parametrize("stop_at", [("synthesising", 3), ("teaching", 8), ("fitting", 5), ("fitting", 8), ("gating", 0)])
def test_a_stopped_job_resumes_to_the_very_same_module(tmp_path: Path, base: BaseModel, whole: Whole, stop_at: tuple[str, int]) -> None:
    job = Job(tmp_path, base)
    with pytest.raises(Stopped):
        job.attempt(stop_at)
    assert not any(parameter.requires_grad for parameter in base.model.parameters()), "the base is bare again"
    resumed = job.attempt()
    assert len({ask.key for ask in Writer.asked}) == len(Writer.asked) == 8
    assert resumed.artefact.digest == whole.trained.artefact.digest
    assert resumed.gate == whole.trained.gate
    if stop_at[0] == "fitting":
        assert job.steps("teaching") == []
        assert job.steps("fitting") == list(range(stop_at[1] + 1, 13))
    if stop_at[0] == "gating":
        assert job.steps("fitting") == []


def test_a_module_that_learned_too_little_is_not_published(tmp_path: Path, base: BaseModel) -> None:
    """But its figures are told."""
    job = Job(tmp_path, base, replace(SMALL, gate_improvement=0.99, max_steps=4))
    with pytest.raises(GateNotPassed, match="less than the 99%"):
        job.attempt()
    [gate] = job.gates
    assert (gate.passed, gate.required) == (False, 0.99)
    assert 0 < gate.improvement < 0.99
    assert not any(parameter.requires_grad for parameter in base.model.parameters())


@pytest.mark.parametrize("name", get_args(ObjectiveName))
def test_every_objective_makes_a_module_that_resumes_to_the_same(tmp_path: Path, base: BaseModel, name: ObjectiveName) -> None:
    """With the texts and the stages that it needs, and no others."""
    recipe = replace(SMALL, objective=name, summaries=4, gate_improvement=0.05, ddcd_windows=2)
    whole = Job(tmp_path / "whole", base, recipe)
    trained = whole.attempt()
    manifest: dict[str, Any] = json.loads((trained.artefact.directory / "manifest.json").read_text())
    assert manifest["objective"] == manifest["recipe"]["objective"] == name
    assert manifest["held_out_loss_after"] < 0.95 * manifest["held_out_loss_before"]
    asked = {"summary" if ask.instruction else "question" for ask in Writer.asked}
    assert asked == {"lm": set(), "ddcd": set(), "pit": {"summary"}, "sdcd": {"summary"}, "mixed": {"summary", "question"}}[name]
    assert bool(whole.steps("teaching")) is (name not in ("lm", "pit"))
    assert (trained.gate.questions > 0) is (name == "mixed")
    parts = Job(tmp_path / "parts", base, recipe)
    with pytest.raises(Stopped):
        parts.attempt(("fitting", 5))
    assert parts.attempt().artefact.digest == trained.artefact.digest


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"with_passages": 0.5}, {"with_passages": 3, "guard": 0}),
        ({"guard": 0.25}, {"with_passages": 0, "guard": 16}),
        ({"scope": "answer", "with_passages": 1.0}, {"with_passages": 6}),
        ({"teacher_cache_bytes": 30_000}, {"teacher_states": 1, "left_out": 8}),
    ],
    ids=["passages", "guard", "scope", "small-cache"],
)
def test_a_recipe_of_more_makes_a_module_that_resumes_to_the_same(
    tmp_path: Path, base: BaseModel, changes: dict[str, Any], told: dict[str, int]
) -> None:
    recipe = replace(SMALL, gate_improvement=-1.0, **changes)
    whole = Job(tmp_path / "whole", base, recipe)
    trained = whole.attempt()
    manifest: dict[str, Any] = json.loads((trained.artefact.directory / "manifest.json").read_text())
    assert sum(file.stat().st_size for file in (tmp_path / "whole" / "teacher").iterdir()) <= recipe.teacher_cache_bytes
    assert {name: manifest["data"][name] for name in told} == told
    assert manifest["scope"] == trained.artefact.scope == recipe.scope
    parts = Job(tmp_path / "parts", base, recipe)
    for stop_at in (("teaching", whole.steps("teaching")[1]), ("fitting", 5)):
        with pytest.raises(Stopped):
            parts.attempt(stop_at)
    assert parts.attempt().artefact.digest == trained.artefact.digest


def test_an_attempt_that_finds_other_passages_begins_its_fit_anew(tmp_path: Path, base: BaseModel) -> None:
    """As after a change of how documents are cut, or of the embedding model; the texts are kept."""
    recipe = replace(SMALL, gate_improvement=-1.0, with_passages=0.5)
    alone, job = Job(tmp_path / "alone", base, recipe), Job(tmp_path / "job", base, recipe)
    alone.passages = [TEXT[40:80]]
    expected = alone.attempt()
    with pytest.raises(Stopped):
        job.attempt(("fitting", 5))
    job.passages, asked = alone.passages, len(Writer.asked)
    assert job.attempt().artefact.digest == expected.artefact.digest
    assert len(Writer.asked) == asked


def test_a_document_without_sentences_teaches_nothing(tmp_path: Path, base: BaseModel) -> None:
    with pytest.raises(NothingToLearn):
        Job(tmp_path, base, text="One short line here.").attempt()
