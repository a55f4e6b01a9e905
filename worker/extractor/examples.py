"""What an extractor learns from: questions with answers about documents, in the mix of settings that it will serve in.

Each example draws whether the document's module is worn, whether passages are in the prompt and how many, and whether the question is
another document's, which is to be declined (eq. 5 and 6 of Caccia et al. 2025 are the settings with a module, without and with passages).
The draw is a function of the seed and the example's number.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from server.engine.prompt import answer_prompt, plain_ids
from server.engine.request import ArtefactRef
from worker.extractor.recipe import ExtractorRecipe
from worker.training.examples import Example

REFUSAL = "The document does not say."
"""The stated answer to a question that neither module nor passages can answer."""
NO_MODULE = -1


@dataclass(frozen=True, kw_only=True)
class Asked:
    question: str
    answers: tuple[str, ...]
    """Any of them is right."""


@dataclass(frozen=True, kw_only=True)
class Taught:
    """A document of the training set. `passages(question, k)`: its `k` nearest, best last."""

    name: str
    questions: tuple[Asked, ...]
    passages: Callable[[str, int], Sequence[str]]
    module: ArtefactRef | None = None


@dataclass(frozen=True, kw_only=True)
class Answered(Example):
    """`module` is the number of the worn module's document, or NO_MODULE."""

    module: int

    @property
    def content(self) -> list[Any]:
        return [*super().content, self.module]


def split_documents(documents: Sequence[Taught], share: float) -> tuple[list[int], list[int]]:
    """Numbers of those to train on and of those held out, spread evenly: every 1/share-th, at least one, never all."""
    stride = max(2, round(1 / share)) if share else len(documents)
    held_out = list(range(stride // 2, len(documents), stride)) or [len(documents) - 1]
    return [number for number in range(len(documents)) if number not in held_out], held_out


class Draw:
    """Makes examples of documents `numbers`. Prompts are made as they are drawn: retrieval remembers what it was asked."""

    def __init__(
        self,
        documents: Sequence[Taught],
        numbers: Sequence[int],
        recipe: ExtractorRecipe,
        tokenizer: PreTrainedTokenizerBase,
        end_of_turn: int,
        others: Sequence[int] | None = None,
    ) -> None:
        """`others`: whose passages and modules a question that is to be declined is asked beside; None: `numbers`."""
        self._documents = documents
        self._others = list(numbers if others is None else others)
        self._asked = [(number, asked) for number in numbers for asked in documents[number].questions]
        self._recipe = recipe
        self._tokenizer = tokenizer
        self._end_of_turn = end_of_turn

    @property
    def questions(self) -> int:
        return len(self._asked)

    def training(self, count: int, seed: int) -> Iterator[Answered]:
        """`count` examples: all questions in random order, again and again, each time in another setting."""
        order: list[int] = []
        for number in range(count):
            if not order:
                order = list(range(len(self._asked)))
                random.Random(f"{seed}/{number}").shuffle(order)
            document, asked = self._asked[order.pop()]
            yield self._example(document, asked, random.Random(f"{seed}/{number}/setting"))

    def held_out(self, seed: int) -> Iterator[Answered]:
        """Questions spread evenly, each in one setting."""
        count = min(len(self._asked), self._recipe.most_held_out)
        for number in range(count):
            document, asked = self._asked[number * len(self._asked) // count]
            yield self._example(document, asked, random.Random(f"{seed}/held-out/{number}"))

    def _example(self, document: int, asked: Asked, chance: random.Random) -> Answered:
        recipe = self._recipe
        module = self._documents[document].module is not None and chance.random() >= recipe.without_module
        read = chance.random() < recipe.with_passages
        others = [other for other in self._others if other != document]
        declined = bool(others) and (module or read) and chance.random() < recipe.unanswerable
        about = chance.choice(others) if declined else document
        passages = self._documents[about].passages(asked.question, chance.randint(1, recipe.most_passages)) if read else ()
        return Answered(
            kind="open" if passages else "closed",
            teacher=None,
            student=answer_prompt(self._tokenizer, asked.question, passages),
            target=(*plain_ids(self._tokenizer, REFUSAL if declined else chance.choice(asked.answers)), self._end_of_turn),
            module=about if module and self._documents[about].module is not None else NO_MODULE,
        )
