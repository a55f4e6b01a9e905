"""Guard: general questions whose answers a module is to leave as they are. The target is the base's own answer, the teacher reads no
context, so what is distilled is the base model itself.

Of the shipped questions half are for training; the others are reserved for measuring (worker.evaluation.guard) and never trained on.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from server.engine.base_model import BaseModel
from server.engine.prompt import ANSWER_BARE
from worker.synthesis.asks import Ask, Generator, generated
from worker.synthesis.texts import TextPair
from worker.training.recipe import Recipe

QUESTIONS = Path(__file__).with_name("guard_questions.txt")
ANSWER_TOKENS = 64
GUARD = "guard"
"""The kind of such an example."""


def training_questions() -> list[str]:
    return list(_questions()[0::2])


def reserved_questions() -> list[str]:
    return list(_questions()[1::2])


def guard_each(recipe: Recipe) -> float:
    """Guard examples beside the batch of a step, on the mean, so that they are the recipe's share of what passes."""
    return recipe.batch_size * recipe.guard / (1 - recipe.guard)


def drawn(recipe: Recipe, seed: int) -> list[str]:
    """Training questions at random, as many different ones as the steps take: what is not general would be learned by heart."""
    questions = training_questions()
    random.Random(f"{seed}/guard").shuffle(questions)
    return questions[: math.ceil(guard_each(recipe) * recipe.max_steps)]


def guard_pairs(questions: Sequence[str], generate: Generator, store: Path, step: Callable[[int, int], None]) -> list[TextPair]:
    """One of each question that the base has an answer to. `generate` is the bare base's; `store` is good for all trainings on it.

    Raises what `step` raises, which must end the run once the generator was told to stop.
    """
    asks = {question: _ask(question) for question in dict.fromkeys(questions)}
    texts = generated(list(asks.values()), generate, store, step)
    answers = [(asks[question].instruction, texts[asks[question].key].strip()) for question in questions]
    return [
        TextPair(kind=GUARD, context="", teacher_instruction=instruction, student_instruction=instruction, target=answer)
        for instruction, answer in answers
        if answer
    ]


def guard_store(folder: Path, base: BaseModel) -> Path:
    """Where the answers of a base are kept."""
    return folder / "guard" / f"{base.fingerprint[:16]}-{str(base.dtype).removeprefix('torch.')}.jsonl"


def _ask(question: str) -> Ask:
    """Every other question is asked as it is, as in a chat, the rest as those about a document are."""
    instruction = question if _questions().index(question) // 2 % 2 else f"{ANSWER_BARE}\n{question}"
    return Ask(context="", instruction=instruction, max_tokens=ANSWER_TOKENS, temperature=0.0, top_p=1.0, seed=0)


@cache
def _questions() -> tuple[str, ...]:
    return tuple(QUESTIONS.read_text(encoding="utf-8").splitlines())
