"""A document with what was synthesised of it, a tiny model in any precision, and what each objective makes of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from server.engine.base_model import BaseModel
from tests.support.byte_tokenizer import byte_tokenizer
from tests.support.tiny_models import EOS, tiny_artefact, tiny_base
from worker.synthesis.texts import TextPair
from worker.training.examples import Example
from worker.training.objectives.objective import Source
from worker.training.objectives.registry import objective_of
from worker.training.recipe import Recipe
from worker.training.student import Student
from worker.training.teacher import TeacherCache, run_teacher

CPU = torch.device("cpu")
TITLE = "Bridges"
CHUNKS = ("The bridge at Orm is nine metres long.", "It was painted green in May, by two people.", "Nobody knows who built it.")
TEXT = "\n\n".join(CHUNKS)
BOS = 256


def pair(kind: str, chunk: str, target: str, student: str = f'Summarize "{TITLE}".') -> TextPair:
    question = student if kind == "question" else ""
    return TextPair(
        kind=kind, context=chunk, teacher_instruction=f"Look. {student}", student_instruction=student, target=target, question=question
    )


def document(text: str = TEXT, pairs: Sequence[TextPair] = (), chunks: Sequence[str] = CHUNKS) -> Source:
    return Source(
        text=text,
        title=TITLE,
        chunks=chunks,
        pairs=pairs,
        tokenizer=byte_tokenizer(),
        end_of_turn=EOS,
        retrieve=lambda question: chunks[:2],
    )


def float64_base() -> BaseModel:
    """With norms that compute in it too: those of transformers go through float32 whatever they are given."""
    base = tiny_base(dtype=torch.float64)
    for name, module in list(base.model.named_modules()):
        if type(module).__name__ == "LlamaRMSNorm":
            size = next(module.parameters()).shape[0]
            base.model.set_submodule(name, nn.RMSNorm(size, eps=1e-6, dtype=torch.float64).requires_grad_(False))
    return base


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A student with random factors, and the loss of a batch as the trainer takes it, with teacher states that lose nothing."""

    student: Student
    folder: Path
    recipe: Recipe

    def loss(self, batch: Sequence[Example]) -> Tensor:
        objective = objective_of(self.recipe)
        cache = TeacherCache(self.folder / "teacher", self.student.base.dtype)
        if objective.needs_teacher:
            with self.student.bare():
                run_teacher(self.student.body, batch, cache, CPU, lambda done, total: None, self.recipe.reading)
        return objective.loss(self.student, batch, cache, self.recipe, CPU)


@contextmanager
def bench(folder: Path, recipe: Recipe, base: BaseModel | None = None) -> Iterator[Bench]:
    base = base or tiny_base()
    worn = tiny_artefact(base, 5, rank=recipe.rank)
    student = Student(base.model, recipe, seed=0)
    student.wear(worn.a, worn.b)
    try:
        yield Bench(student=student, folder=folder, recipe=recipe)
    finally:
        student.unload()
