"""The interface of an objective: what it makes of a document and its synthesis, whether that needs a teacher, and the loss.

The pipeline and the fit know nothing else of it. A new objective is one file here, its line in registry.py and its name in
recipe.ObjectiveName.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from worker.synthesis.kinds import KINDS
from worker.synthesis.texts import TextPair
from worker.training.examples import Example
from worker.training.passages import Retrieve
from worker.training.recipe import Recipe
from worker.training.student import Student
from worker.training.teacher import TeacherCache


@dataclass(frozen=True, kw_only=True)
class Source:
    """What an objective makes examples of: a document and the texts synthesised of it."""

    text: str
    title: str
    chunks: Sequence[str]
    """What summaries are of: their `context`."""
    pairs: Sequence[TextPair]
    tokenizer: PreTrainedTokenizerBase
    end_of_turn: int
    retrieve: Retrieve


@dataclass(frozen=True, kw_only=True)
class Data:
    """`held_out` decides on early stop, the best step and the gate; `asked` are the pairs behind it that ask something, if any do.
    `counts` go into the manifest."""

    training: list[Example]
    held_out: list[Example]
    asked: list[TextPair] = field(default_factory=list)
    counts: Mapping[str, int] = field(default_factory=dict)


class Objective(ABC):
    kinds: ClassVar[frozenset[str]]
    """Of TextPair: those it trains on. No others are synthesised."""
    needs_teacher: ClassVar[bool]
    """Whether its loss reads the teacher's states of the examples."""
    least: ClassVar[int]
    """Training examples that a document must give."""

    def narrowed(self, recipe: Recipe) -> Recipe:
        """The recipe without the texts that this objective has no use for."""
        unused: dict[str, Any] = {kind.count: 0 for kind in KINDS if kind.name not in self.kinds}
        return replace(
            recipe,
            **unused,
            with_passages=recipe.with_passages if "question" in self.kinds else 0.0,
            guard=recipe.guard if self.needs_teacher else 0.0,
        )

    @abstractmethod
    def data(self, source: Source, recipe: Recipe, seed: int) -> Data:
        """The same for the same arguments: a later attempt makes it again."""

    @abstractmethod
    def loss(self, student: Student, batch: Sequence[Example], teacher: TeacherCache, recipe: Recipe, device: torch.device) -> Tensor:
        """Of a micro-batch, mean over its target tokens; differentiable in the student's parameters."""
