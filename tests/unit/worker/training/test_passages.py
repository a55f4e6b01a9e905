"""Questions that are learned with passages beside them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from server.engine.prompt import answer_prompt
from tests.support.byte_tokenizer import byte_tokenizer
from tests.support.tiny_document import CHUNKS, document, pair
from worker.training.examples import Example
from worker.training.objectives.mixed import Mixed
from worker.training.objectives.sdcd import SDCD
from worker.training.passages import OPEN
from worker.training.recipe import Recipe

RECIPE = Recipe(preset="quick", objective="mixed", chunk_tokens=60)
PAIRS = [
    *[pair("question", CHUNKS[i % 3], f"{i} metres", f"How long is {i}?") for i in range(40)],
    *[pair("recitation", CHUNKS[1], f"in May {i}", f"Complete {i}.") for i in range(20)],
]


def training(share: float, seed: int = 0) -> list[Example]:
    return Mixed().data(document(pairs=PAIRS), replace(RECIPE, with_passages=share), seed).training


def test_without_a_share_nothing_changes() -> None:
    assert Counter(example.kind for example in training(0.0)) == {"question": 33, "recitation": 20}


@pytest.mark.parametrize(("share", "count"), [(0.25, 8), (1.0, 33)])
def test_a_share_of_the_questions_is_asked_as_it_is_served_with_passages(share: float, count: int) -> None:
    plain, mixed = training(0.0), training(share)
    changed = [(before, after) for before, after in zip(plain, mixed, strict=True) if before != after]
    assert Counter(example.kind for example in mixed)[OPEN] == len(changed) == count
    asked = {pair.target: pair.question for pair in PAIRS}
    held = set()
    for before, after in changed:
        assert (after.teacher, after.target) == (before.teacher, before.target)
        question = asked[str(byte_tokenizer().decode(list(after.target), skip_special_tokens=True))]
        prompts = {k: answer_prompt(byte_tokenizer(), question, CHUNKS[2 - k : 2]) for k in (1, 2)}
        held |= {k for k, prompt in prompts.items() if prompt == after.student}
        assert after.student in prompts.values()
    assert held == {1, 2}, "one passage, the best, or two"


def test_the_draw_is_the_seeds() -> None:
    assert training(0.5) == training(0.5)
    assert training(0.5) != training(0.5, seed=1)


def test_what_is_held_out_is_asked_without() -> None:
    """The gate's loss is of what the module knows."""
    data = Mixed().data(document(pairs=PAIRS), replace(RECIPE, with_passages=1.0), 0)
    assert {example.kind for example in data.held_out} == {"question"}


def test_no_passage_found_leaves_the_question_alone() -> None:
    source = replace(document(pairs=PAIRS), retrieve=lambda question: [])
    assert Mixed().data(source, replace(RECIPE, with_passages=1.0), 0).training == training(0.0)


def test_an_objective_without_questions_says_that_it_read_none() -> None:
    assert SDCD().narrowed(replace(RECIPE, with_passages=0.5)).with_passages == 0
    assert Mixed().narrowed(replace(RECIPE, with_passages=0.5)).with_passages == 0.5
