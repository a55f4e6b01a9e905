"""An extractor on a tiny model: from questions and modules to an artefact that serves what was trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from server.engine.base_model import BaseModel, adapted_layers
from server.engine.options import EngineOptions
from server.engine.request import ArtefactRef, EngineRequest, Scope
from server.engine.score import score_batch
from server.errors import GateNotPassed, InvalidInput, NothingToLearn
from server.modules.artefact import Artefact, read_artefact, write_artefact
from tests.support.tiny_models import FINGERPRINT, tiny_artefact, tiny_base
from worker.extractor.composed import composed
from worker.extractor.examples import Answered, Asked, Draw, Taught
from worker.extractor.pipeline import ExtractorGate, ExtractorSpec, TrainedExtractor, train_extractor
from worker.extractor.recipe import ExtractorRecipe
from worker.training.fit import Stopped
from worker.training.recipe import ScopeName

RECIPE = ExtractorRecipe(rank=4, alpha=4.0, dropout=0.0, learning_rate=1e-2, max_steps=12, batch_size=4, micro_batch=4, evaluate_every=4)
COLOURS = ("red", "blue", "green")


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return tiny_base()


def written(base: BaseModel, directory: Path, artefact: Artefact) -> ArtefactRef:
    return write_artefact(
        directory, a=artefact.a, b=artefact.b, manifest=artefact.manifest, base_model_name="tiny", composition=artefact.composition
    )


def module(base: BaseModel, directory: Path, seed: int, wears: str | None = None, scope: Scope = Scope.ALL) -> ArtefactRef:
    made = tiny_artefact(base, seed, size=0.3, scope=scope)
    return written(base, directory, replace(made, manifest=replace(made.manifest, wears=wears)))


def documents(
    base: BaseModel, folder: Path, wears: str | None = None, modules: bool = True, scope: Scope = Scope.ALL
) -> tuple[Taught, ...]:
    def passages(colour: str) -> Callable[[str, int], Sequence[str]]:
        return lambda question, k: [f"The gate is {colour}."]

    return tuple(
        Taught(
            name=colour,
            questions=tuple(Asked(question=f"Which colour has gate {n}?", answers=(f"it is all {colour}",)) for n in range(3)),
            passages=passages(colour),
            module=module(base, folder / colour, seed, wears, scope) if modules else None,
        )
        for seed, colour in enumerate(COLOURS)
    )


def train(base: BaseModel, folder: Path, taught: Sequence[Taught], recipe: ExtractorRecipe = RECIPE, **changes: Any) -> TrainedExtractor:
    reported: list[str] = []
    gates: list[ExtractorGate] = []
    spec = ExtractorSpec(documents=tuple(taught), recipe=recipe, seed=3, directory=folder / "job", attempt=1, **changes)

    def report(stage: str, done: int, total: int, unit: str) -> None:
        reported.append(stage)

    trained = train_extractor(base, spec, report, gates.append)
    assert list(dict.fromkeys(reported)) == ["preparing", "fitting", "gating"]
    assert gates == [trained.gate]
    return trained


def proven(base: BaseModel, ref: ArtefactRef) -> Artefact:
    shapes = {name: (layer.out_features, layer.in_features) for name, layer in adapted_layers(base.model).items()}
    return read_artefact(ref, FINGERPRINT, shapes, 8)


def test_an_extractor_learns_its_lora_and_its_weights(base: BaseModel, tmp_path: Path) -> None:
    before = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    trained = train(base, tmp_path, documents(base, tmp_path))
    artefact = proven(base, trained.artefact)
    assert artefact.manifest.kind == "knowledge_extractor"
    assert artefact.manifest.data["modules"] == 3
    assert artefact.manifest.start is None
    assert {tensor.dtype for tensor in artefact.a.values()} == {torch.bfloat16}
    assert artefact.composition is not None
    assert bool((artefact.composition.w_km != 1).all())
    assert bool((artefact.composition.w_ke != 1).all())
    assert trained.gate.passed
    assert trained.gate.loss_after < 0.9 * trained.gate.loss_before
    assert trained.gate.weights["w_km"]["most"] > trained.gate.weights["w_km"]["least"]
    assert base.model.state_dict().keys() == before.keys()
    assert all(torch.equal(base.model.state_dict()[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("scope", ["all", "answer"])
def test_the_engine_serves_the_losses_that_were_trained(base: BaseModel, tmp_path: Path, scope: ScopeName) -> None:
    """Mixed rows of modules and none, with passages and without: the trainer's formula and the engine's are one."""
    recipe = replace(RECIPE, scope=scope)
    taught = documents(base, tmp_path, scope=Scope(scope))
    trained = train(base, tmp_path, taught, recipe)
    assert trained.artefact.scope == scope
    extractor = proven(base, trained.artefact)
    examples = list(Draw(taught, range(3), RECIPE, base.tokenizer, min(base.eos_ids)).held_out(0))
    assert len({example.module for example in examples}) > 2
    modules = {number: proven(base, document.module) for number, document in enumerate(taught) if document.module is not None}
    with composed(base, replace(recipe, learn="weights"), 0, modules, extractor) as student:
        student.train(False)
        with torch.no_grad():
            losses = [float(student.loss([example])) for example in examples]
            together = float(student.loss(examples))
    requests = [request(number, example, taught, trained.artefact) for number, example in enumerate(examples)]
    scores = score_batch(base, [(each, [e.target]) for each, e in zip(requests, examples, strict=True)], options=EngineOptions())
    served = [-sum(found[0].logprobs) / len(found[0].logprobs) for found in scores]
    assert served == pytest.approx(losses, rel=1e-4)
    weights = [len(example.target) for example in examples]
    assert together == pytest.approx(sum(n * loss for n, loss in zip(weights, losses, strict=True)) / sum(weights), rel=1e-4)


def request(number: int, example: Answered, taught: Sequence[Taught], extractor: ArtefactRef) -> EngineRequest:
    worn = taught[example.module].module if example.module >= 0 else None
    return EngineRequest(request_id=str(number), tenant="t", prompt=example.student, module=worn, extractor=extractor)


def test_weights_alone_are_learned_over_the_lora_that_modules_wear(base: BaseModel, tmp_path: Path) -> None:
    reader = train(base, tmp_path / "reader", documents(base, tmp_path / "bare", modules=False)).artefact
    worn = documents(base, tmp_path / "worn", wears=reader.digest)
    weights = replace(RECIPE, learn="weights", weights_rate=0.1, gate_improvement=-1.0)
    trained = train(base, tmp_path, worn, weights, start=reader)
    assert trained.artefact.digest == reader.digest
    assert trained.artefact.composition != reader.composition
    before, after = proven(base, reader), proven(base, trained.artefact)
    assert all(torch.equal(before.a[layer], after.a[layer]) for layer in before.a)
    assert after.composition is not None
    assert bool((after.composition.w_km != 1).any())


def test_a_reader_is_trained_on_over_modules(base: BaseModel, tmp_path: Path) -> None:
    """The order that ships: what begins from it begins with its loss, and says in its manifest where that was."""
    reader = train(base, tmp_path / "reader", documents(base, tmp_path / "bare", modules=False)).artefact
    trained = train(base, tmp_path, documents(base, tmp_path), replace(RECIPE, learning_rate=1e-3, gate_improvement=-1.0), start=reader)
    artefact = proven(base, trained.artefact)
    assert artefact.manifest.start == {"lora": reader.digest, "composition": reader.composition}
    assert (artefact.manifest.rank, artefact.manifest.alpha) == (4, 4.0)
    assert trained.artefact.digest != reader.digest
    bare = train(base, tmp_path / "nothing", documents(base, tmp_path / "again"))
    assert trained.gate.loss_before < bare.gate.loss_before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 8}, "starts from has rank 4 and the recipe has rank 8"),
        ({"alpha": 8.0}, "starts from has alpha 4 and the recipe has alpha 8"),
        ({"alpha": 8.0, "learn": "weights"}, "starts from has alpha 4 and the recipe has alpha 8"),
    ],
)
def test_a_start_of_another_shape_is_refused_before_anything_is_drawn(
    base: BaseModel, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    recipe = replace(RECIPE, max_steps=2, evaluate_every=2, gate_improvement=-1.0)
    reader = train(base, tmp_path / "reader", documents(base, tmp_path / "bare", modules=False), recipe).artefact
    with pytest.raises(InvalidInput, match=message):
        train(base, tmp_path, documents(base, tmp_path), replace(recipe, **changes), start=reader)
    assert not (tmp_path / "job").exists()


def test_one_that_is_no_better_than_its_start_is_not_published(base: BaseModel, tmp_path: Path) -> None:
    taught = documents(base, tmp_path / "bare", modules=False)
    reader = train(base, tmp_path / "reader", taught).artefact
    with pytest.raises(GateNotPassed, match="of the one that training started from by"):
        train(base, tmp_path, taught, replace(RECIPE, max_steps=1, learning_rate=1e-6, weights_rate=1e-6), start=reader)


def test_worn_modules_are_right_only_over_their_extractors_lora(base: BaseModel, tmp_path: Path) -> None:
    worn = documents(base, tmp_path, wears="a" * 64)
    with pytest.raises(InvalidInput, match="right only over its lora"):
        train(base, tmp_path, worn)
    mixed = [replace(worn[0], module=module(base, tmp_path / "bare", 9)), *worn[1:]]
    with pytest.raises(InvalidInput, match="wear different extractors"):
        train(base, tmp_path, mixed)


def test_a_lora_that_is_trained_on_is_not_the_one_that_modules_wear(base: BaseModel, tmp_path: Path) -> None:
    """Not even where training starts from it: what is published has another digest."""
    reader = train(base, tmp_path / "reader", documents(base, tmp_path / "bare", modules=False)).artefact
    worn = documents(base, tmp_path / "worn", wears=reader.digest)
    with pytest.raises(InvalidInput, match="with `learn: weights`"):
        train(base, tmp_path, worn, start=reader)


def test_modules_of_another_scope_are_not_mixed_in(base: BaseModel, tmp_path: Path) -> None:
    answer = replace(RECIPE, scope="answer")
    with pytest.raises(InvalidInput, match="modules have scope `all` and the recipe has scope `answer`"):
        train(base, tmp_path, documents(base, tmp_path), answer)
    reader = train(base, tmp_path / "reader", documents(base, tmp_path / "bare", modules=False), answer).artefact
    weights = replace(RECIPE, learn="weights")
    with pytest.raises(InvalidInput, match="starts from has scope `answer` and the recipe has scope `all`"):
        train(base, tmp_path, documents(base, tmp_path / "worn", wears=reader.digest), weights, start=reader)


def test_one_that_learns_nothing_is_not_published(base: BaseModel, tmp_path: Path) -> None:
    with pytest.raises(GateNotPassed, match=r"less than the 90\.0% required"):
        train(base, tmp_path, documents(base, tmp_path), replace(RECIPE, gate_improvement=0.9))


@pytest.mark.parametrize(("count", "message"), [(0, "at least two documents"), (1, "at least two documents")])
def test_a_single_document_teaches_no_extractor(base: BaseModel, tmp_path: Path, count: int, message: str) -> None:
    with pytest.raises(NothingToLearn, match=message):
        train(base, tmp_path, documents(base, tmp_path)[:count])


def test_a_stopped_training_resumes_to_the_same_extractor(base: BaseModel, tmp_path: Path) -> None:
    taught = documents(base, tmp_path)
    whole = train(base, tmp_path / "whole", taught)
    spec = ExtractorSpec(documents=taught, recipe=RECIPE, seed=3, directory=tmp_path / "parts" / "job", attempt=1)

    def stop(stage: str, done: int, total: int, unit: str) -> None:
        if (stage, done) == ("fitting", 5):
            raise Stopped

    with pytest.raises(Stopped):
        train_extractor(base, spec, stop, lambda gate: None)
    resumed = train(base, tmp_path / "parts", taught)
    assert (resumed.artefact.digest, resumed.artefact.composition) == (whole.artefact.digest, whole.artefact.composition)


def test_a_later_attempt_over_other_modules_begins_anew(base: BaseModel, tmp_path: Path) -> None:
    taught = documents(base, tmp_path)
    expected = train(base, tmp_path / "alone", taught)
    spec = ExtractorSpec(
        documents=documents(base, tmp_path / "bare", modules=False), recipe=RECIPE, seed=3, directory=tmp_path / "job", attempt=1
    )

    def stop(stage: str, done: int, total: int, unit: str) -> None:
        if (stage, done) == ("fitting", 5):
            raise Stopped

    with pytest.raises(Stopped):
        train_extractor(base, spec, stop, lambda gate: None)
    later = train(base, tmp_path, taught)
    assert (later.artefact.digest, later.artefact.composition) == (expected.artefact.digest, expected.artefact.composition)


def test_a_later_attempt_over_other_passages_begins_anew(base: BaseModel, tmp_path: Path) -> None:
    """They are of the prompts that are learned from, and no word of the specification says which they were."""
    taught = documents(base, tmp_path)
    other = tuple(replace(each, passages=lambda question, k: ["Other words of the same document."]) for each in taught)
    expected = train(base, tmp_path / "alone", other)
    train(base, tmp_path, taught)
    later = train(base, tmp_path, other)
    assert (later.artefact.digest, later.artefact.composition) == (expected.artefact.digest, expected.artefact.composition)


def test_a_reader_does_not_look_at_modules_that_wear_something_else(base: BaseModel, tmp_path: Path) -> None:
    """So a new lora can be trained while modules wear the old one."""
    worn = documents(base, tmp_path, wears="a" * 64)
    reader = replace(RECIPE, without_module=1.0, max_steps=2, evaluate_every=2, gate_improvement=-1.0)
    assert train(base, tmp_path, worn, reader).artefact.digest


def test_weights_alone_need_an_extractor_that_is_there(base: BaseModel, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="activate one first"):
        train(base, tmp_path, documents(base, tmp_path), replace(RECIPE, learn="weights"))
