"""The mix that an extractor learns from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from server.engine.prompt import answer_prompt, plain_ids
from server.engine.request import ArtefactRef, Scope
from tests.support.byte_tokenizer import byte_tokenizer
from tests.support.tiny_models import EOS
from worker.extractor.examples import NO_MODULE, REFUSAL, Answered, Asked, Draw, Taught, split_documents
from worker.extractor.recipe import ExtractorRecipe

TOKENIZER = byte_tokenizer()
REFUSED = (*plain_ids(TOKENIZER, REFUSAL), EOS)
RECIPE = ExtractorRecipe()


def taught(number: int, module: bool = True, questions: int = 3) -> Taught:
    def passages(question: str, k: int) -> Sequence[str]:
        return [f"passage {n} of {number}" for n in range(k)]

    ref = ArtefactRef(digest=str(number), manifest_sha256="", directory=Path(str(number)), scope=Scope.ALL)
    asked = tuple(Asked(question=f"What is {number}.{n}?", answers=(f"answer {number}.{n}",)) for n in range(questions))
    return Taught(name=str(number), questions=asked, passages=passages, module=ref if module else None)


def draw(recipe: ExtractorRecipe = RECIPE, documents: Sequence[Taught] | None = None) -> Draw:
    documents = [taught(number) for number in range(6)] if documents is None else documents
    return Draw(documents, range(len(documents)), recipe, TOKENIZER, EOS)


def drawn(count: int = 600, recipe: ExtractorRecipe = RECIPE, documents: Sequence[Taught] | None = None, seed: int = 0) -> list[Answered]:
    return list(draw(recipe, documents).training(count, seed))


def share(examples: Sequence[Answered], chosen: Callable[[Answered], bool]) -> float:
    return sum(map(chosen, examples)) / len(examples)


def read(example: Answered) -> str:
    return str(TOKENIZER.decode(list(example.student.ids)))


def test_the_shares_are_the_recipes() -> None:
    examples = drawn()
    assert share(examples, lambda e: e.module == NO_MODULE) == pytest.approx(0.25, abs=0.06)
    assert share(examples, lambda e: e.kind == "open") == pytest.approx(0.5, abs=0.06)
    possible = [e for e in examples if e.module != NO_MODULE or e.kind == "open"]
    assert share(possible, lambda e: e.target == REFUSED) == pytest.approx(0.2, abs=0.06)


def test_every_question_is_asked_before_one_is_asked_again() -> None:
    recipe = replace(RECIPE, with_passages=0.0)
    asked = Counter(e.student.ids for e in drawn(36, recipe))
    assert set(asked.values()) == {2}


def test_the_same_seed_draws_the_same_and_another_seed_does_not() -> None:
    assert drawn(50) == drawn(50)
    assert drawn(50, seed=1) != drawn(50)


def test_an_unanswerable_question_meets_another_documents_module_and_passages() -> None:
    for example in drawn(200, replace(RECIPE, unanswerable=1.0, without_module=0.0)):
        assert example.target == REFUSED
        text = read(example)
        asked = text.split("What is ")[1].split(".")[0]
        assert str(example.module) != asked
        if example.kind == "open":
            assert f"passage 0 of {example.module}" in text


def test_a_document_that_is_held_out_alone_is_declined_beside_those_that_are_trained_on() -> None:
    recipe = replace(RECIPE, unanswerable=1.0, without_module=0.0)
    documents = [taught(number) for number in range(3)]
    alone = Draw(documents, [1], recipe, TOKENIZER, EOS)
    assert all(example.target != REFUSED for example in alone.held_out(0)), "there is nothing to ask beside"
    held_out = list(Draw(documents, [1], recipe, TOKENIZER, EOS, range(3)).held_out(0))
    assert len(held_out) == 3
    assert all(example.target == REFUSED and example.module != 1 for example in held_out)


def test_what_nothing_could_answer_is_not_declined() -> None:
    """Without module and passages the extractor learns the form of answers alone."""
    examples = drawn(100, replace(RECIPE, unanswerable=1.0, without_module=1.0, with_passages=0.0))
    assert all(example.target != REFUSED for example in examples)


def test_documents_without_modules_teach_reading() -> None:
    examples = drawn(100, documents=[taught(number, module=False) for number in range(3)])
    assert {example.module for example in examples} == {NO_MODULE}


def test_prompts_are_those_of_serving() -> None:
    (example,) = drawn(1, replace(RECIPE, with_passages=0.0, unanswerable=0.0))
    question = read(example).split("commentary.\n")[1].split("?")[0] + "?"
    assert example.student == answer_prompt(TOKENIZER, question)


def test_held_out_questions_are_spread_and_limited() -> None:
    examples = list(draw(replace(RECIPE, most_held_out=6, unanswerable=0.0, without_module=0.0)).held_out(0))
    assert [example.module for example in examples] == [0, 1, 2, 3, 4, 5]
    assert len(list(draw().held_out(0))) == 18


@pytest.mark.parametrize(
    ("count", "share", "held_out"), [(2, 0.1, [1]), (16, 0.1, [5, 15]), (20, 0.1, [5, 15]), (4, 0.5, [1, 3]), (3, 0.0, [1])]
)
def test_documents_are_held_out_whole(count: int, share: float, held_out: list[int]) -> None:
    training, held = split_documents([taught(number) for number in range(count)], share)
    assert held == held_out
    assert sorted([*training, *held]) == list(range(count))
    assert training
