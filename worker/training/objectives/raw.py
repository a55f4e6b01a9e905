"""What `lm`, `pit` and `ddcd` share: raw text behind BOS, without a chat template."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from server.engine.prompt import Prompt
from worker.training.blockwise import nll_from_states
from worker.training.examples import Example
from worker.training.objectives.objective import Data, Objective
from worker.training.recipe import Recipe
from worker.training.states import head_of
from worker.training.student import Student
from worker.training.teacher import TeacherCache


class Likelihood(Objective):
    """The negative log-likelihood of every target token. Always at the positions that predict it: `recipe.positions` is of distillation."""

    needs_teacher = False
    least = 1

    def loss(self, student: Student, batch: Sequence[Example], teacher: TeacherCache, recipe: Recipe, device: torch.device) -> Tensor:
        prompts, targets = [e.student for e in batch], [e.target for e in batch]
        final = student.states(prompts, targets, device)[-1]
        tokens = torch.tensor([token for target in targets for token in target], device=device)
        return nll_from_states(final, tokens, head_of(student.base))


def begin(tokenizer: PreTrainedTokenizerBase) -> int:
    """BOS; of a tokenizer without one what stands between documents, its end of text."""
    token = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    assert isinstance(token, int), "a base model's tokenizer ends its texts"
    return token


def raw_example(read: tuple[int, ...], target: tuple[int, ...]) -> Example:
    """`target` after `read`, which begins with BOS; nobody teaches."""
    return Example(kind="document", teacher=None, student=Prompt(bare=(), adapted=read), target=target)


def held_out_part(examples: Sequence[Example], share: float) -> Data:
    """Every 1/share-th example is held out, at least one where there are two."""
    stride = max(2, round(1 / share))
    chosen = set(range(len(examples))[stride // 2 :: stride] or range(len(examples))[1:2])
    return Data(
        training=[example for i, example in enumerate(examples) if i not in chosen],
        held_out=[example for i, example in enumerate(examples) if i in chosen],
    )
