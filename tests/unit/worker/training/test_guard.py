"""General questions with the base's own answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from server.engine.prompt import ANSWER_BARE
from tests.support.tiny_models import EOS, tiny_base
from worker.synthesis.asks import Ask
from worker.training.examples import to_examples
from worker.training.fit import Stopped, batch_at
from worker.training.guard import ANSWER_TOKENS, GUARD, drawn, guard_each, guard_pairs, guard_store, reserved_questions, training_questions
from worker.training.objectives.registry import OBJECTIVES
from worker.training.recipe import QUICK


class Base:
    """Answers by the question; knows no answer to the `silent` one."""

    def __init__(self, silent: str = "") -> None:
        self.asked: list[Ask] = []
        self._silent = silent

    def __call__(self, asks: Sequence[Ask], on_finished: Callable[[int, str], None]) -> None:
        for index, ask in enumerate(asks):
            self.asked.append(ask)
            on_finished(index, "" if ask.instruction.endswith(self._silent or "never") else f" About {ask.instruction[-9:]}\n")


def quiet(done: int, total: int) -> None: ...


def test_two_hundred_questions_of_which_half_are_never_trained_on() -> None:
    trained, reserved = training_questions(), reserved_questions()
    assert (len(set(trained)), len(set(reserved))) == (100, 100)
    assert not set(trained) & set(reserved)
    assert all(question.strip() == question and len(question) < 90 for question in trained + reserved)


@pytest.mark.parametrize(("batch", "share", "asked"), [(8, 0.2, 20), (8, 0.1, 9), (8, 0.5, 80), (8, 0.0, 0), (4, 0.05, 3)])
def test_they_are_their_share_of_what_passes(tmp_path: Path, batch: int, share: float, asked: int) -> None:
    recipe = replace(QUICK, batch_size=batch, guard=share, max_steps=10)
    example = to_examples(tiny_base().tokenizer, guard_pairs(training_questions()[:1], Base(), tmp_path / "answers.jsonl", quiet), EOS)
    passing = [len(batch_at(example, guard_each(recipe), 0, step)) for step in range(10)]
    assert sum(passing) == int(10 * guard_each(recipe))
    assert max(passing) - min(passing) <= 1
    assert len(set(drawn(recipe, 0))) == len(drawn(recipe, 0)) == asked, "no question twice"


def test_the_draw_is_the_seeds() -> None:
    some = replace(QUICK, guard=0.2, max_steps=10)
    assert drawn(some, 1) == drawn(some, 1)
    assert drawn(some, 1) != drawn(some, 2)
    assert set(drawn(replace(some, max_steps=1500), 0)) == set(training_questions())


def test_the_target_is_the_bases_greedy_answer_without_any_context(tmp_path: Path) -> None:
    base = Base()
    pairs = guard_pairs(training_questions(), base, tmp_path / "answers.jsonl", quiet)
    assert len(pairs) == 100
    assert {(ask.context, ask.temperature, ask.max_tokens) for ask in base.asked} == {("", 0.0, ANSWER_TOKENS)}
    for pair, question in zip(pairs, training_questions(), strict=True):
        assert (pair.kind, pair.context, pair.question) == (GUARD, "", "")
        assert pair.student_instruction == pair.teacher_instruction in (question, f"{ANSWER_BARE}\n{question}")
        assert pair.target == f"About {question[-9:]}"
    assert sum(pair.student_instruction.startswith(ANSWER_BARE) for pair in pairs) == 50, "as in an ask; the others as in a chat"


def test_an_answer_is_generated_once(tmp_path: Path) -> None:
    store = guard_store(tmp_path, tiny_base())
    first, again = Base(), Base()
    questions = [*training_questions(), *training_questions()[:20]]
    pairs = guard_pairs(questions, first, store, quiet)
    assert (len(first.asked), len(pairs)) == (100, 120)
    assert guard_pairs(questions, again, store, quiet) == pairs
    assert again.asked == []


def test_a_question_that_the_base_says_nothing_to_is_left_out(tmp_path: Path) -> None:
    questions = training_questions()[:4]
    assert len(guard_pairs(questions, Base(silent=questions[2]), tmp_path / "answers.jsonl", quiet)) == 3


def test_told_to_stop_it_stops(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise Stopped

    with pytest.raises(Stopped):
        guard_pairs(training_questions(), Base(), tmp_path / "answers.jsonl", stop)


def test_a_likelihood_has_no_teacher_to_guard_with() -> None:
    kept = {name: objective.narrowed(replace(QUICK, guard=0.05)).guard for name, objective in OBJECTIVES.items()}
    assert kept == {"lm": 0.0, "pit": 0.0, "ddcd": 0.05, "sdcd": 0.05, "mixed": 0.05}
