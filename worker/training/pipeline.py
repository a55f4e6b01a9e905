"""The train spine: load, synthesise, run the teacher, fit, write, gate. Knows nothing of rows: a spec in, an artefact or an error out."""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from server.engine.base_model import BaseModel
from server.engine.options import EngineOptions
from server.engine.request import ArtefactRef
from server.errors import GateNotPassed, InvalidInput, NothingToLearn
from server.modules.artefact import Artefact, read_artefact, write_artefact
from server.modules.manifest import ArtefactKind, Manifest
from worker.synthesis.asks import Generator
from worker.synthesis.generator import EngineGenerator
from worker.synthesis.synthesise import Synthesis, synthesise
from worker.training.adapted import layers_to_train
from worker.training.budget import sizes_of, within_budget
from worker.training.examples import Example, digest_of, to_examples
from worker.training.fit import FitResult, FitState, Loss, fit
from worker.training.gate import Gate, measure
from worker.training.guard import GUARD, drawn, guard_each, guard_pairs
from worker.training.inputs import TEXTS, keep_only_of, keep_only_of_examples, named
from worker.training.objectives.objective import Data, Objective, Source
from worker.training.objectives.registry import objective_of
from worker.training.passages import OPEN, Retrieve
from worker.training.provenance import library_versions, now
from worker.training.recipe import Recipe, as_json, for_base
from worker.training.student import Student
from worker.training.teacher import TeacherCache, run_teacher
from worker.training.worn import Wearing, like, module_weights, proven, taken_off, wearing, worn_extractor

logger = logging.getLogger(__name__)
Report = Callable[[str, int, int, str], None]
"""(stage, done, total, unit); may raise worker.training.fit.Stopped."""


@dataclass(frozen=True, kw_only=True)
class Writer:
    """Who writes the texts that a module is distilled from in the place of the base model; `name` goes into the manifest."""

    name: str
    generate: Generator


@dataclass(frozen=True, kw_only=True)
class TrainingSpec:
    text: str
    title: str
    revision_sha256: str
    recipe: Recipe
    seed: int
    directory: Path
    """The job's: synthesis and teacher states are kept here for later attempts."""
    attempt: int
    extractor: ArtefactRef | None = None
    """What teacher and student wear, and the module from then on."""
    guard_answers: Path | None = None
    """The base's answers to general questions, for all trainings on it; None: in the job's directory, for this one."""
    writer: Writer | None = None


@dataclass(frozen=True, kw_only=True)
class Trained:
    artefact: ArtefactRef
    gate: Gate


def train(
    base: BaseModel,
    spec: TrainingSpec,
    options: EngineOptions,
    retrieve: Retrieve,
    report: Report,
    should_stop: Callable[[], bool],
    on_gate: Callable[[Gate], None],
) -> Trained:
    """`should_stop` is asked within long generations; once it says so, the next `report` must raise. `on_gate` hears every verdict.

    Raises NothingToLearn, GateNotPassed, InvalidInput; what `report` raises passes through with everything resumable kept.
    """
    objective = objective_of(spec.recipe)
    spec = replace(spec, recipe=objective.narrowed(for_base(spec.recipe, base.model.num_parameters())))
    layers_to_train(base.model, spec.recipe.adapted)  # or refused, before its texts are written
    extractor = _extractor(base, spec)
    text = hashlib.sha256(spec.text.encode()).hexdigest()
    writer = {} if spec.writer is None else {"writer": spec.writer.name}
    keep_only_of(spec.directory, base, spec.recipe, spec.seed, text=text, title=spec.title, extractor=named(spec.extractor), **writer)
    generate = EngineGenerator(base, options, should_stop)
    synthesis = _synthesise(base, spec, generate if spec.writer is None else spec.writer.generate, report)
    data, kept = _data(base, spec, objective, synthesis, generate, retrieve, report)
    keep_only_of_examples(spec.directory, digest_of([*data.held_out, *data.training]))
    worn = [] if extractor is None else [worn_extractor(extractor, like(base))]
    weight_of = None if extractor is None else module_weights(extractor, like(base))
    with wearing(base.model, worn):
        teacher = _teach(base, spec, [*data.held_out, *data.training] if objective.needs_teacher else [], kept, worn, report)
        student = Student(base.model, spec.recipe, spec.seed, weight_of, worn, spec.recipe.adapted)
        return _distil(base, spec, objective, synthesis, data, teacher, student, retrieve, report, on_gate)


def _distil(
    base: BaseModel,
    spec: TrainingSpec,
    objective: Objective,
    synthesis: Synthesis,
    data: Data,
    teacher: TeacherCache,
    student: Student,
    retrieve: Retrieve,
    report: Report,
    on_gate: Callable[[Gate], None],
) -> Trained:
    """Takes the student off in any case."""
    try:
        loss = partial(objective.loss, student, teacher=teacher, recipe=spec.recipe, device=base.device)
        result = _fit(student, data, loss, spec, report)
        report("gating", 0, 1, "gate")
        ref = _write(base, spec, synthesis, result, data, gate={})
        gate = _gate(base, student, ref, data, loss, spec, retrieve)
        on_gate(gate)
        report("gating", 1, 1, "gate")
    finally:
        student.unload()
    if not gate.passed:
        raise GateNotPassed(
            f"The module lowered the held-out loss by {gate.improvement:.0%}, less than the {gate.required:.0%} required; "
            "answers stay on retrieval. Train again with a larger preset (`standard`, `paper`), or with more text."
        )
    ref = _write(base, spec, synthesis, result, data, gate=asdict(gate))
    return Trained(artefact=ref, gate=gate)


def _extractor(base: BaseModel, spec: TrainingSpec) -> Artefact | None:
    if spec.extractor is None:
        return None
    if spec.extractor.scope != spec.recipe.scope:
        raise InvalidInput(
            f"The extractor that the module is to wear has scope `{spec.extractor.scope}` and the recipe scope `{spec.recipe.scope}`: "
            f"train the module with scope `{spec.extractor.scope}`, or activate an extractor of scope `{spec.recipe.scope}`."
        )
    return proven(base, spec.extractor)


def _synthesise(base: BaseModel, spec: TrainingSpec, generate: Generator, report: Report) -> Synthesis:
    return synthesise(
        spec.text,
        spec.title,
        spec.recipe,
        spec.seed,
        generate,
        spec.directory / TEXTS,
        lambda text: len(base.tokenizer(text, add_special_tokens=False)["input_ids"]),
        lambda done, total: report("synthesising", done, total, "texts"),
    )


def _data(
    base: BaseModel,
    spec: TrainingSpec,
    objective: Objective,
    synthesis: Synthesis,
    generate: Generator,
    retrieve: Retrieve,
    report: Report,
) -> tuple[Data, tuple[int, ...]]:
    """The examples, with the guard's, as many as the teacher's budget holds, and which of a teacher's states are stored."""
    data = objective.data(_source(base, spec, synthesis, retrieve), spec.recipe, spec.seed)
    if (given := len(data.training)) < objective.least or not data.held_out:
        raise NothingToLearn(
            f"The document gave {given} usable training texts and {len(data.held_out)} to be held out, and objective "
            f"`{spec.recipe.objective}` needs {objective.least} and 1: at least a few whole sentences, or a recipe that writes more texts."
        )
    data = _guarded(base, spec, data, synthesis.counts["generations"], generate, report)
    if not objective.needs_teacher:
        return data, ()
    return within_budget(data, sizes_of(base, spec.recipe), spec.recipe.teacher_cache_bytes, objective.least)


def _guarded(base: BaseModel, spec: TrainingSpec, data: Data, generations: int, generate: Generator, report: Report) -> Data:
    """The guard's few answers are generated after the document's texts, which were reported to their end and are so again."""
    questions = drawn(spec.recipe, spec.seed)
    if not questions:
        return data
    store = spec.guard_answers or spec.directory / "guard.jsonl"
    pairs = guard_pairs(questions, generate, store, lambda done, total: report("synthesising", generations, generations, "texts"))
    return replace(data, training=[*data.training, *to_examples(base.tokenizer, pairs, min(base.eos_ids))])


def _source(base: BaseModel, spec: TrainingSpec, synthesis: Synthesis, retrieve: Retrieve) -> Source:
    return Source(
        text=spec.text,
        title=spec.title,
        chunks=synthesis.chunks,
        pairs=synthesis.pairs,
        tokenizer=base.tokenizer,
        end_of_turn=min(base.eos_ids),
        retrieve=retrieve,
    )


def _teach(
    base: BaseModel, spec: TrainingSpec, examples: Sequence[Example], kept: Sequence[int], worn: Sequence[Wearing], report: Report
) -> TeacherCache:
    """The base as it is worn; under scope `answer` the context is read by the bare one."""
    cache = TeacherCache(spec.directory / "teacher", kept=kept)
    unworn = partial(taken_off, worn) if worn and spec.recipe.scope == "answer" else None

    def step(done: int, total: int) -> None:
        report("teaching", done, total, "examples")

    run_teacher(base.model.base_model, examples, cache, base.device, step, spec.recipe.reading, unworn)
    return cache


def _fit(student: Student, data: Data, loss: Loss, spec: TrainingSpec, report: Report) -> FitResult:
    def on_step(state: FitState) -> None:
        report("fitting", state.step, spec.recipe.max_steps, "steps")

    return fit(
        student,
        [example for example in data.training if example.kind != GUARD],
        data.held_out,
        loss,
        spec.recipe,
        seed=spec.seed,
        checkpoints=spec.directory / "checkpoint",
        on_step=on_step,
        beside=[example for example in data.training if example.kind == GUARD],
        beside_each=guard_each(spec.recipe),
    )


def _gate(base: BaseModel, student: Student, ref: ArtefactRef, data: Data, loss: Loss, spec: TrainingSpec, retrieve: Retrieve) -> Gate:
    shapes = {name: (layer.out_features, layer.in_features) for name, layer in _original_shapes(student).items()}
    artefact = read_artefact(ref, base.fingerprint, shapes, spec.recipe.rank)
    return measure(student, artefact, data.held_out, data.asked, loss, spec.recipe, retrieve, base.tokenizer, base.device)


def _original_shapes(student: Student) -> dict[str, Any]:
    """The adapted layers while the student's stand in their places."""
    a, _ = student.factors()
    return {name: student.base.get_submodule(name) for name in a}


def _write(base: BaseModel, spec: TrainingSpec, synthesis: Synthesis, result: FitResult, data: Data, gate: dict[str, Any]) -> ArtefactRef:
    """Write the artefact anew. The tensors do not change between the write that is gated and the one that records the verdict, and the
    digest, which covers the tensors alone, proves it."""
    directory = spec.directory / f"attempt-{spec.attempt}" / "artefact"
    shutil.rmtree(directory, ignore_errors=True)
    manifest = Manifest(
        kind=ArtefactKind.KNOWLEDGE_MODULE,
        base_fingerprint=base.fingerprint,
        rank=spec.recipe.rank,
        alpha=spec.recipe.alpha,
        targets=tuple(sorted(result.a)),
        scope=spec.recipe.scope,
        wears=None if spec.extractor is None else spec.extractor.digest,
        document_revision=spec.revision_sha256,
        objective=spec.recipe.objective,
        recipe=as_json(spec.recipe),
        data={**synthesis.counts, **_counts(data), "steps": result.steps, "best_step": result.best_step},
        seed=spec.seed,
        held_out_loss_before=result.loss_before,
        held_out_loss_after=result.loss_after,
        gate=gate,
        versions={**library_versions(), **({} if spec.writer is None else {"writer": spec.writer.name})},
        created=now(),
    )
    return write_artefact(directory, a=result.a, b=result.b, manifest=manifest, base_model_name=base.name)


def _counts(data: Data) -> dict[str, int]:
    kinds = Counter(example.kind for example in data.training)
    parts = {"training": len(data.training), "held_out": len(data.held_out), "with_passages": kinds[OPEN], "guard": kinds[GUARD]}
    return {**parts, **data.counts}
