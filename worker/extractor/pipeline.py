"""Training an extractor: read the modules, draw examples, fit, write, gate. A spec in, an artefact or an error out."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from server.engine.base_model import BaseModel
from server.engine.request import ArtefactRef
from server.errors import GateNotPassed, InvalidInput, NothingToLearn
from server.modules.artefact import Artefact, write_artefact
from server.modules.composition import Composition
from server.modules.manifest import ArtefactKind, Manifest
from worker.extractor.composed import Composed, composed
from worker.extractor.examples import Answered, Draw, Taught, split_documents
from worker.extractor.recipe import ExtractorRecipe
from worker.extractor.start import proven_start
from worker.training.examples import digest_of
from worker.training.fit import FitResult, FitState, fit, held_out_loss
from worker.training.inputs import keep_only_of, keep_only_of_examples, named
from worker.training.pipeline import Report
from worker.training.provenance import library_versions, now
from worker.training.worn import proven

logger = logging.getLogger(__name__)
MOVED = 0.05
"""A weight that moved less has not been learned."""
OBJECTIVE = "answers"


@dataclass(frozen=True, kw_only=True)
class ExtractorSpec:
    """`start`: the extractor that training begins from; with `learn: weights` the one that modules wear."""

    documents: tuple[Taught, ...]
    recipe: ExtractorRecipe
    seed: int
    directory: Path
    attempt: int
    start: ArtefactRef | None = None


@dataclass(frozen=True, kw_only=True)
class ExtractorGate:
    """Losses are mean NLLs (nats a token) of answers about documents that were not trained on; `before` is with the modules alone, or with
    the extractor that training began from. `weights` describes those of the composition, see `spread`."""

    passed: bool
    loss_before: float
    loss_after: float
    improvement: float
    required: float
    questions: int
    weights: dict[str, dict[str, float]]


@dataclass(frozen=True, kw_only=True)
class TrainedExtractor:
    artefact: ArtefactRef
    gate: ExtractorGate


def train_extractor(base: BaseModel, spec: ExtractorSpec, report: Report, on_gate: Callable[[ExtractorGate], None]) -> TrainedExtractor:
    """`on_gate` hears every verdict. Raises NothingToLearn, GateNotPassed, InvalidInput for modules that cannot be trained on together and
    for a start that the recipe does not fit; what `report` raises passes through with everything resumable kept."""
    if spec.recipe.learn == "weights" and spec.start is None:
        raise InvalidInput("weights alone are learned over an extractor that is there: activate one first, or learn all")
    start = proven_start(base, spec.start, spec.recipe) if spec.start is not None else None
    if spec.recipe.without_module >= 1:  # then modules may wear what they will: they are not looked at
        spec = replace(spec, documents=tuple(replace(document, module=None) for document in spec.documents))
    modules_named = [named(document.module) for document in spec.documents]
    keep_only_of(spec.directory, base, spec.recipe, spec.seed, modules=modules_named, start=named(spec.start))
    training, held_out = _draw(base, spec, report)
    keep_only_of_examples(spec.directory, digest_of([*held_out, *training]))
    modules = _modules(base, spec)
    with composed(base, spec.recipe, spec.seed, modules, start) as student:
        before = student.composition()
        result = _fit(student, training, held_out, spec, report)
        a, b = student.round()
        report("gating", 0, 1, "gate")
        loss_after = held_out_loss(student, held_out, student.loss, spec.recipe)
        after = student.composition()
    result = replace(result, a=a, b=b, loss_after=loss_after)
    gate = _gate(spec, result, spread(before, after, _layers_of(modules)), len(held_out))
    on_gate(gate)
    report("gating", 1, 1, "gate")
    if not gate.passed:
        whose = "" if start is None else " of the one that training started from"
        raise GateNotPassed(
            f"The extractor lowered the held-out loss{whose} by {gate.improvement:.1%}, less than the {gate.required:.1%} required; "
            "train it on more questions, or for more steps."
        )
    counts = {"training": len(training), "held_out": len(held_out), "modules": len(modules), **_counts(spec, result)}
    return TrainedExtractor(artefact=_write(base, spec, result, after, gate, counts), gate=gate)


def spread(before: Composition, after: Composition, of_modules: Collection[str]) -> dict[str, dict[str, float]]:
    """How far the weights went: least, most, mean, and the share that moved less than MOVED and must be called unlearned; of w_km
    in the layers that modules have, for in others nothing depends on it."""
    sides = {"w_ke": (before.w_ke, after.w_ke)}
    if of_modules:
        have = torch.tensor([layer in of_modules for layer in before.layers])
        sides["w_km"] = (before.w_km[have], after.w_km[have])
    return {
        name: {
            "least": float(now_.min()),
            "most": float(now_.max()),
            "mean": float(now_.mean()),
            "unlearned": float(((now_ - then).abs() < MOVED).float().mean()),
        }
        for name, (then, now_) in sides.items()
    }


def _draw(base: BaseModel, spec: ExtractorSpec, report: Report) -> tuple[list[Answered], list[Answered]]:
    """Examples to train on, as many as all steps need, and those held out: of other documents."""
    recipe = spec.recipe
    if len(spec.documents) < 2:
        raise NothingToLearn("An extractor is trained on questions about at least two documents: one is held out.")
    numbers = split_documents(spec.documents, recipe.held_out)
    # Often one document alone is held out: what is declined there is asked beside those that are trained on.
    beside = (None, range(len(spec.documents)))
    train, held = (
        Draw(spec.documents, part, recipe, base.tokenizer, min(base.eos_ids), others) for part, others in zip(numbers, beside, strict=True)
    )
    if not train.questions or not held.questions:
        raise NothingToLearn("Each document that an extractor is trained on needs questions.")
    total = recipe.max_steps * recipe.batch_size
    examples: list[Answered] = []
    for example in train.training(total, spec.seed):
        examples.append(example)
        if len(examples) % 64 == 0 or len(examples) == total:
            report("preparing", len(examples), total, "examples")
    limit = base.context_limit
    fitting = [example for example in examples if len(example) <= limit]
    if len(fitting) < len(examples):
        logger.warning("%d examples are longer than the base model's context and are left out", len(examples) - len(fitting))
    held_out = [example for example in held.held_out(spec.seed) if len(example) <= limit]
    if not fitting or not held_out:
        raise NothingToLearn("All questions are longer than the base model's context: use fewer or shorter passages.")
    return fitting, held_out


def _modules(base: BaseModel, spec: ExtractorSpec) -> dict[int, Artefact]:
    found = {number: proven(base, document.module) for number, document in enumerate(spec.documents) if document.module is not None}
    worn = {module.manifest.wears for module in found.values()}
    if len(worn) > 1:
        raise InvalidInput("the documents' modules wear different extractors: train those that wear an old one again first")
    wears = next(iter(worn), None)
    if wears is not None and (spec.recipe.learn != "weights" or spec.start is None or spec.start.digest != wears):
        raise InvalidInput(
            "the documents' modules wear an extractor and are right only over its lora: start from it, with `learn: weights`"
        )
    if len({(module.manifest.rank, module.manifest.targets) for module in found.values()}) > 1:
        raise InvalidInput("the documents' modules differ in rank or layers: train them with one recipe first")
    _check_scopes(spec)
    return found


def _layers_of(modules: Mapping[int, Artefact]) -> frozenset[str]:
    """All have the same."""
    return frozenset(next(iter(modules.values())).a) if modules else frozenset()


def _check_scopes(spec: ExtractorSpec) -> None:
    """Adapters of different scopes are not trained together: each has learned from states that the other has not made.

    Raises InvalidInput.
    """
    for module in (document.module for document in spec.documents):
        if module is not None and module.scope != spec.recipe.scope:
            raise InvalidInput(
                f"the documents' modules have scope `{module.scope}` and the recipe has scope `{spec.recipe.scope}`: "
                f"name the scope `{module.scope}` in the recipe, or train the others with the recipe's first"
            )


def _fit(student: Composed, training: Sequence[Answered], held_out: Sequence[Answered], spec: ExtractorSpec, report: Report) -> FitResult:
    def on_step(state: FitState) -> None:
        report("fitting", state.step, spec.recipe.max_steps, "steps")

    return fit(
        student,
        training,
        held_out,
        student.loss,
        spec.recipe,
        seed=spec.seed,
        checkpoints=spec.directory / "checkpoint",
        on_step=on_step,
        rates=dict.fromkeys(("w_km", "w_ke"), spec.recipe.weights_rate),
    )


def _gate(spec: ExtractorSpec, result: FitResult, weights: dict[str, dict[str, float]], questions: int) -> ExtractorGate:
    improvement = (result.loss_before - result.loss_after) / result.loss_before if result.loss_before else 0.0
    return ExtractorGate(
        passed=improvement >= spec.recipe.gate_improvement,
        loss_before=result.loss_before,
        loss_after=result.loss_after,
        improvement=improvement,
        required=spec.recipe.gate_improvement,
        questions=questions,
        weights=weights,
    )


def _counts(spec: ExtractorSpec, result: FitResult) -> dict[str, int]:
    questions = sum(len(document.questions) for document in spec.documents)
    return {"documents": len(spec.documents), "questions": questions, "steps": result.steps, "best_step": result.best_step}


def _write(
    base: BaseModel,
    spec: ExtractorSpec,
    result: FitResult,
    composition: Composition,
    gate: ExtractorGate,
    counts: dict[str, int],
) -> ArtefactRef:
    directory = spec.directory / f"attempt-{spec.attempt}" / "artefact"
    shutil.rmtree(directory, ignore_errors=True)
    recipe = spec.recipe
    manifest = Manifest(
        kind=ArtefactKind.KNOWLEDGE_EXTRACTOR,
        base_fingerprint=base.fingerprint,
        rank=recipe.rank,
        alpha=recipe.alpha,
        targets=tuple(sorted(result.a)),
        scope=recipe.scope,
        wears=None,
        document_revision=None,
        objective=OBJECTIVE,
        recipe=asdict(recipe),
        data=counts,
        seed=spec.seed,
        held_out_loss_before=result.loss_before,
        held_out_loss_after=result.loss_after,
        gate=asdict(gate),
        versions=library_versions(),
        created=now(),
        start=_digests(spec.start),
    )
    return write_artefact(directory, a=result.a, b=result.b, manifest=manifest, base_model_name=base.name, composition=composition)


def _digests(start: ArtefactRef | None) -> dict[str, str] | None:
    if start is None:
        return None
    assert start.composition is not None, "an extractor has a composition"
    return {"lora": start.digest, "composition": start.composition}
