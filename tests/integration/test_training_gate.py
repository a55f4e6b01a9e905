"""The gate: what it measures is what was written, and it lets nothing through that learned too little."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from server.modules.artefact import Artefact
from tests.support.tiny_models import tiny_artefact
from tests.support.tiny_training import CPU, RECIPE, WINDOW, TinyTraining, tiny_pairs, tiny_training
from worker.synthesis.texts import TextPair
from worker.training.fit import held_out_loss
from worker.training.gate import Gate, measure
from worker.training.recipe import Recipe
from worker.training.student import Student

Factors = tuple[dict[str, Tensor], dict[str, Tensor]]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyTraining:
    return tiny_training(tmp_path_factory.mktemp("gate"))


@pytest.fixture(scope="module")
def fitted(tiny: TinyTraining) -> Factors:
    student = tiny.student()
    result = tiny.fit(student)
    student.unload()
    return result.a, result.b


@pytest.fixture
def student(tiny: TinyTraining) -> Iterator[Student]:
    made = tiny.student(seed=9)
    yield made
    made.unload()


def written(tiny: TinyTraining, factors: Factors) -> Artefact:
    return replace(tiny_artefact(tiny.base, 0), a=factors[0], b=factors[1])


def gate(tiny: TinyTraining, student: Student, artefact: Artefact, recipe: Recipe = RECIPE, pairs: list[TextPair] | None = None) -> Gate:
    asked = tiny.pairs if pairs is None else pairs
    return measure(
        student, artefact, tiny.held_out, asked, tiny.loss(student, recipe), recipe, lambda question: [WINDOW], tiny.base.tokenizer, CPU
    )


def test_a_module_that_learned_passes(tiny: TinyTraining, student: Student, fitted: Factors) -> None:
    """Measured on the artefact, whatever the student wore before."""
    student.wear({n: t + 1 for n, t in fitted[0].items()}, {n: t + 1 for n, t in fitted[1].items()})
    verdict = gate(tiny, student, written(tiny, fitted))
    student.wear(*fitted)
    assert verdict.passed
    assert verdict.loss_after == held_out_loss(student, tiny.held_out, tiny.loss(student), RECIPE)
    with student.bare():
        assert verdict.loss_before == held_out_loss(student, tiny.held_out, tiny.loss(student), RECIPE)
    assert verdict.improvement == pytest.approx(1 - verdict.loss_after / verdict.loss_before)
    assert (verdict.required, verdict.questions) == (0.2, 3)


def test_bytes_that_are_not_those_of_the_fit_do_not_pass(tiny: TinyTraining, student: Student, fitted: Factors) -> None:
    """The student itself has learned; what would be published has not."""
    student.wear(*fitted)
    zero = ({n: torch.zeros_like(t) for n, t in fitted[0].items()}, {n: torch.zeros_like(t) for n, t in fitted[1].items()})
    verdict = gate(tiny, student, written(tiny, zero))
    assert not verdict.passed
    assert verdict.improvement == 0
    assert verdict.loss_after == verdict.loss_before


@pytest.mark.parametrize(("margin", "passed"), [(-1e-6, True), (1e-6, False)])
def test_the_verdict_is_by_the_recipes_share(tiny: TinyTraining, student: Student, fitted: Factors, margin: float, passed: bool) -> None:
    reached = gate(tiny, student, written(tiny, fitted)).improvement
    assert gate(tiny, student, written(tiny, fitted), replace(RECIPE, gate_improvement=reached + margin)).passed is passed


def test_without_questions_there_is_no_answer_loss_and_auto_stays_on_retrieval(
    tiny: TinyTraining, student: Student, fitted: Factors
) -> None:
    verdict = gate(tiny, student, written(tiny, fitted), pairs=tiny_pairs(3, "summary"))
    assert (verdict.questions, verdict.retrieval_nll, verdict.open_book_nll, verdict.closed_book_nll) == (0, None, None, None)
    assert verdict.auto_mode == "retrieval"


def test_auto_takes_the_better_mode_of_the_two_with_passages(tiny: TinyTraining, student: Student, fitted: Factors) -> None:
    helped = gate(tiny, student, written(tiny, fitted))
    assert helped.retrieval_nll is not None
    assert helped.open_book_nll is not None
    assert helped.auto_mode == ("open_book" if helped.open_book_nll < helped.retrieval_nll else "retrieval")
    harmed = gate(tiny, student, written(tiny, ({n: 9 * t for n, t in fitted[0].items()}, {n: -9 * t for n, t in fitted[1].items()})))
    assert harmed.retrieval_nll == pytest.approx(helped.retrieval_nll)
    assert harmed.open_book_nll is not None
    assert harmed.open_book_nll > helped.retrieval_nll
    assert harmed.auto_mode == "retrieval"
    assert not harmed.passed
