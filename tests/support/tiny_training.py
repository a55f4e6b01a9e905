"""A training small enough for a unit test: examples about one sentence, a tiny random model and a recipe of few steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from server.engine.base_model import BaseModel
from tests.support.tiny_models import EOS, tiny_base
from worker.synthesis.texts import TextPair
from worker.training.examples import Example, to_examples
from worker.training.fit import FitResult, FitState, Loss, fit
from worker.training.objectives.registry import objective_of
from worker.training.recipe import Recipe
from worker.training.student import Student
from worker.training.teacher import TeacherCache, run_teacher

CPU = torch.device("cpu")
WINDOW = "The bridge at Orm is nine metres long and painted green."
TARGETS = ("nine metres", "painted green", "at Orm", "green", "long", "metres long")
RECIPE = Recipe(
    preset="quick",
    objective="mixed",
    rank=4,
    alpha=4.0,
    max_steps=12,
    learning_rate=1e-2,
    batch_size=4,
    micro_batch=4,
    evaluate_every=4,
)
"""Lowers the held-out loss by about 40 %."""


def tiny_pairs(count: int, kind: str = "question") -> list[TextPair]:
    """Each asks for something else."""
    return [
        TextPair(
            kind=kind,
            context=WINDOW,
            teacher_instruction=f"Say what {i} is.",
            student_instruction=f"Say {i}.",
            target=TARGETS[i % len(TARGETS)],
            question=f"What is {i}?" if kind == "question" else "",
        )
        for i in range(count)
    ]


@dataclass(frozen=True, kw_only=True)
class TinyTraining:
    """`pairs` are those of `held_out`; the teacher has read all examples. Each fit has its checkpoints in `folder` by `name`."""

    folder: Path
    base: BaseModel
    training: list[Example]
    held_out: list[Example]
    pairs: list[TextPair]
    teacher: TeacherCache

    def student(self, recipe: Recipe = RECIPE, seed: int = 0) -> Student:
        """To be unloaded before the next."""
        return Student(self.base.model, recipe, seed)

    def loss(self, student: Student, recipe: Recipe = RECIPE) -> Loss:
        return partial(objective_of(recipe).loss, student, teacher=self.teacher, recipe=recipe, device=CPU)

    def fit(
        self,
        student: Student,
        on_step: Callable[[FitState], None] = lambda state: None,
        *,
        recipe: Recipe = RECIPE,
        name: str = "checkpoint",
    ) -> FitResult:
        return fit(
            student,
            self.training,
            self.held_out,
            self.loss(student, recipe),
            recipe,
            seed=3,
            checkpoints=self.folder / name,
            on_step=on_step,
        )


def tiny_training(folder: Path) -> TinyTraining:
    base = tiny_base()
    pairs = tiny_pairs(10)
    examples = to_examples(base.tokenizer, pairs, EOS)
    teacher = TeacherCache(folder / "teacher")
    run_teacher(base.model.base_model, examples, teacher, CPU, lambda done, total: None)
    return TinyTraining(folder=folder, base=base, training=examples[3:], held_out=examples[:3], pairs=pairs[:3], teacher=teacher)


TWO_STEPS: dict[str, Any] = {
    "rank": 4,
    "max_steps": 2,
    "learning_rate": 1e-3,
    "b_rate": 1.0,
    "batch_size": 2,
    "micro_batch": 2,
    "evaluate_every": 2,
    "questions": 0,
    "summaries": 1,
    "summary_tokens": 8,
    "chunk_tokens": 64,
    "recitations": 2,
}
"""Changes to a recipe that make a training a matter of a second."""
