"""What `ddcd`, `sdcd` and `mixed` share: Deep Context Distillation as the loss, and examples of synthesised pairs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from worker.training.distance import dcd_loss
from worker.training.examples import Example, split_held_out, to_examples
from worker.training.objectives.objective import Data, Objective, Source
from worker.training.passages import open_book
from worker.training.recipe import Recipe
from worker.training.states import head_of
from worker.training.student import Student
from worker.training.teacher import TeacherCache


class Distillation(Objective):
    needs_teacher = True
    least = 4

    def loss(self, student: Student, batch: Sequence[Example], teacher: TeacherCache, recipe: Recipe, device: torch.device) -> Tensor:
        layers, final = teacher.get(batch, device)
        prompts, targets = [e.student for e in batch], [e.target for e in batch]
        states = student.states(prompts, targets, device, reading=recipe.reading)
        return dcd_loss(teacher.kept(states), layers, final, head_of(student.base), recipe.hidden_weight, recipe.hidden_term)


class PairDistillation(Distillation):
    """Teacher: context and instruction in the chat template; student: the instruction alone; both: the text as the answer."""

    def data(self, source: Source, recipe: Recipe, seed: int) -> Data:
        pairs = [pair for pair in source.pairs if pair.kind in self.kinds]
        training, held_out = split_held_out(pairs, recipe.held_out)
        made = [to_examples(source.tokenizer, part, source.end_of_turn) for part in (training, held_out)]
        return Data(
            training=open_book(training, made[0], source.retrieve, source.tokenizer, recipe.with_passages, seed),
            held_out=made[1],
            asked=[pair for pair in held_out if pair.question],
        )
