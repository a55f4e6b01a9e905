"""The product's own trainer on the task: teacher cache, block-wise losses, `fit`."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import torch

from benchmarks.padding import packed_of
from benchmarks.training.curve import Curve
from benchmarks.training.task import SEED, Task
from server.engine.base_model import BaseModel
from worker.training.fit import FitState, batch_at, fit, micro_batches
from worker.training.objectives.registry import objective_of
from worker.training.student import Student
from worker.training.teacher import LAYER_DTYPE, TeacherCache, run_teacher


def run_ours(base: BaseModel, task: Task, curve: Curve, folder: Path, layer_dtype: torch.dtype = LAYER_DTYPE) -> None:
    """`layer_dtype` is that of the teacher's kept layers."""
    cache, recipe = TeacherCache(folder / "teacher", layer_dtype), task.recipe
    with curve.step():
        run_teacher(base.model.base_model, [*task.training, *task.held_out], cache, base.device, lambda done, total: None)
    student = Student(base.model, recipe, SEED)
    loss = partial(objective_of(recipe).loss, student, teacher=cache, recipe=recipe, device=base.device)
    watch = _Watch(curve)
    try:
        result = fit(student, task.training, task.held_out, loss, recipe, seed=SEED, checkpoints=folder / "checkpoint", on_step=watch)
    finally:
        student.unload()
    curve.tokens, curve.fit_seconds = result.tokens, watch.fitted
    for step in range(recipe.max_steps):
        for part in micro_batches(batch_at(task.training, recipe.batch_size, SEED, step), recipe.micro_batch):
            curve.computed += packed_of(part).tokens
            curve.targets += sum(len(example.target) for example in part)


class _Watch:
    """Times steps from one callback to the next. The first, and those with an evaluation, which takes its own time, count as their
    neighbours."""

    def __init__(self, curve: Curve) -> None:
        self.fitted = 0.0
        self._curve = curve
        self._last: float | None = None
        self._usual = 0.0
        self._owed = 0

    def __call__(self, state: FitState) -> None:
        now = time.perf_counter()
        evaluated = state.held_out[-1][0] == state.step
        if self._last is not None and not evaluated:
            self._usual = now - self._last
        self._last = now
        self._owed += 1
        if self._usual:
            self.fitted += self._owed * self._usual
            self._curve.seconds += self._owed * self._usual
            self._owed = 0
        self._curve.losses = list(state.losses)
        if evaluated:
            self._curve.evaluated(state.step, state.held_out[-1][1])
