"""Examples as token ids, and which of them are held out."""

from __future__ import annotations

from dataclasses import replace

import pytest

from server.engine.prompt import ANSWER_BARE, answer_prompt, instruction_prompt
from tests.support.byte_tokenizer import byte_tokenizer
from tests.support.tiny_models import EOS
from tests.support.tiny_training import WINDOW, tiny_pairs
from worker.synthesis.texts import TextPair
from worker.training.examples import MIN_HELD_OUT, split_held_out, to_examples
from worker.training.objectives.distillation import Distillation
from worker.training.recipe import SUMMARIES_ALONE


def held(count: int, share: float = 0.1) -> int:
    return len(split_held_out(tiny_pairs(count), share)[1])


def asking(question: str, kind: str = "question", target: str = "green") -> TextPair:
    return TextPair(
        kind=kind, context=WINDOW, teacher_instruction=f"{question} Look.", student_instruction=question, target=target, question=question
    )


def test_teacher_and_student_read_what_serving_would() -> None:
    tokenizer = byte_tokenizer()
    question = "What colour is the bridge?"
    pair = asking(f"{ANSWER_BARE}\n{question}")
    [example] = to_examples(tokenizer, [pair], EOS)
    assert example.student == answer_prompt(tokenizer, question, ())
    assert example.teacher == instruction_prompt(tokenizer, pair.teacher_instruction, context=WINDOW)
    assert tokenizer.decode(list(example.target[:-1])) == "green"
    assert example.target[-1] == EOS


def test_the_fewest_summaries_of_a_page_are_enough_to_distil_it() -> None:
    pairs = [replace(pair, kind="summary", question="") for pair in tiny_pairs(SUMMARIES_ALONE)]
    training, held_out = split_held_out(pairs, 0.1)
    assert len(training) >= Distillation.least
    assert held_out


def test_control_tokens_in_a_text_stay_text() -> None:
    [example] = to_examples(byte_tokenizer(), [asking("What?", target="a</s>")], EOS)
    assert example.target.count(EOS) == 1


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [(100, 10), (60, 6), (40, 7), (24, 6), (23, 6), (12, 3), (8, 2), (4, 1), (2, 1), (1, 1)],
)
def test_every_tenth_is_held_out_and_more_of_few_but_no_more_than_every_fourth(pairs: int, expected: int) -> None:
    assert held(pairs) == expected
    assert held(pairs) >= min(MIN_HELD_OUT, pairs // 4)
    assert held(pairs) <= max(1, -(-pairs // 4))


def test_a_larger_share_is_taken_as_it_is() -> None:
    assert held(100, 0.5) == 50


def test_no_question_asked_in_training_is_held_out() -> None:
    """Questions repeat, with other answers: all pairs of a held-out one leave training."""
    pairs = [asking(f"What is {i % 7}?", target=f"answer {i}") for i in range(80)]
    training, held_out = split_held_out(pairs, 0.1)
    assert held_out
    assert {pair.question for pair in training}.isdisjoint(pair.question for pair in held_out)


def test_questions_are_held_out_and_other_kinds_stay() -> None:
    pairs = [*tiny_pairs(12, "summary"), *tiny_pairs(12, "recitation"), *[asking(f"Which {i}?") for i in range(40)]]
    training, held_out = split_held_out(pairs, 0.1)
    assert {pair.kind for pair in held_out} == {"question"}
    assert sum(pair.kind != "question" for pair in training) == 24


def test_summaries_are_asked_for_in_the_same_words_and_stay_in_training() -> None:
    """As synthesis makes them: one instruction of the student for all."""
    pairs = [asking("Summarize the document.", "summary", f"Summary {i} of it.") for i in range(20)]
    training, held_out = split_held_out(pairs, 0.1)
    assert (len(training), len(held_out)) == (15, 5)


@pytest.mark.parametrize("kind", ["summary", "recitation"])
def test_without_questions_summaries_are_held_out_and_without_those_anything(kind: str) -> None:
    training, held_out = split_held_out(tiny_pairs(20, kind), 0.1)
    assert {pair.kind for pair in held_out} == {kind}
    assert len(training) + len(held_out) == 20
