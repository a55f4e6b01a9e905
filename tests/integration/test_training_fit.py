"""The fit on a tiny random model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.support.tiny_training import RECIPE, TinyTraining, tiny_training
from worker.training.examples import Example
from worker.training.fit import MICRO_LENGTH, FitResult, FitState, Stopped, batch_at, fit, held_out_loss, micro_batches, schedule
from worker.training.recipe import Recipe
from worker.training.student import Student


@pytest.fixture
def tiny(tmp_path: Path) -> TinyTraining:
    return tiny_training(tmp_path)


@pytest.fixture
def student(tiny: TinyTraining) -> Iterator[Student]:
    made = tiny.student()
    yield made
    made.unload()


class StopAt:
    """A job's callback that ends the run after a step, and records all steps."""

    def __init__(self, last: int | None = None) -> None:
        self.steps: list[int] = []
        self._last = last

    def __call__(self, state: FitState) -> None:
        self.steps.append(state.step)
        if state.step == self._last:
            raise Stopped


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_it_lowers_the_held_out_loss(tiny: TinyTraining, student: Student) -> None:
    result = tiny.fit(student)
    assert result.loss_after < 0.8 * result.loss_before
    assert result.loss_after == held_out_loss(student, tiny.held_out, tiny.loss(student), RECIPE)
    assert (result.steps, result.best_step) == (12, 12)
    assert result.tokens > 0


@pytest.mark.parametrize("last", [5, 8], ids=["between-evaluations", "at-an-evaluation"])
def test_a_stopped_run_resumes_to_the_very_same_tensors(tiny: TinyTraining, last: int) -> None:
    """With dropout, so that the random numbers of a step are its own too, and with two rates."""
    recipe = replace(RECIPE, dropout=0.1, max_steps=9, b_rate=4.0, learning_rate=3e-3)
    whole = run(tiny, StopAt(), "whole", recipe)
    with pytest.raises(Stopped):
        run(tiny, StopAt(last), "parts", recipe)
    rest = StopAt()
    resumed = run(tiny, rest, "parts", recipe, seed=99)
    assert rest.steps == list(range(last + 1, 10))
    assert same(whole.a, resumed.a)
    assert same(whole.b, resumed.b)
    assert (resumed.loss_before, resumed.loss_after) == (whole.loss_before, whole.loss_after)


def run(tiny: TinyTraining, on_step: StopAt, name: str, recipe: Recipe = RECIPE, seed: int = 0) -> FitResult:
    """As a process of its own would: a new student, whose first factors are those of `seed`."""
    student = tiny.student(recipe, seed)
    try:
        return tiny.fit(student, on_step, recipe=recipe, name=name)
    finally:
        student.unload()


def test_a_finished_run_is_not_trained_again(tiny: TinyTraining) -> None:
    first, again, short = StopAt(), StopAt(), replace(RECIPE, max_steps=4)
    whole, repeated = run(tiny, first, "one", short), run(tiny, again, "one", short)
    assert (len(first.steps), again.steps) == (4, [])
    assert same(whole.a, repeated.a)
    assert same(whole.b, repeated.b)


def test_the_best_step_is_kept_and_a_stale_run_ends(tiny: TinyTraining, student: Student) -> None:
    """A learning rate that destroys: the untrained factors stay the best."""
    before = held_out_loss(student, tiny.held_out, tiny.loss(student), RECIPE)
    steps = StopAt()
    result = tiny.fit(student, steps, recipe=replace(RECIPE, learning_rate=100.0, evaluate_every=2, patience=2))
    assert (result.best_step, result.loss_before, result.loss_after) == (0, before, before)
    assert not any(tensor.any() for tensor in result.b.values())
    assert result.steps == steps.steps[-1] == 4
    assert held_out_loss(student, tiny.held_out, tiny.loss(student), RECIPE) == before


def test_a_smaller_micro_batch_gives_the_same_gradients(tiny: TinyTraining) -> None:
    """What a retry after an exhausted accelerator relies on."""
    one_step = replace(RECIPE, max_steps=1)
    whole = run(tiny, StopAt(), "whole", one_step)
    parts = run(tiny, StopAt(), "parts", replace(one_step, micro_batch=1))
    assert parts.loss_after == pytest.approx(whole.loss_after, rel=1e-3)


def test_b_learns_at_its_own_rate(tiny: TinyTraining) -> None:
    """A step of Adam moves every number by its rate: the first moves B, which is zero, and A not yet."""
    usual, faster = (run(tiny, StopAt(), name, replace(RECIPE, max_steps=1, b_rate=rate)) for name, rate in (("one", 1.0), ("two", 4.0)))
    moved = {name: b.abs().max().item() for name, b in usual.b.items()}
    assert all(value == pytest.approx(RECIPE.learning_rate, rel=1e-2) for value in moved.values())
    assert {name: b.abs().max().item() for name, b in faster.b.items()} == pytest.approx({name: 4 * value for name, value in moved.items()})


def test_examples_beside_pass_with_every_step(tiny: TinyTraining, student: Student) -> None:
    """So many each, and the document's own batches stay what they are without them."""
    loss, passed = tiny.loss(student), []
    others = [replace(example, kind="other") for example in tiny.training[:3]]
    recipe = replace(RECIPE, max_steps=4, evaluate_every=4)

    def watched(batch: Sequence[Example]) -> Tensor:
        if torch.is_grad_enabled():
            passed.append(list(batch))
        return loss(batch)

    fit(
        student,
        tiny.training,
        tiny.held_out,
        watched,
        recipe,
        seed=3,
        checkpoints=tiny.folder / "beside",
        on_step=lambda state: None,
        beside=others,
        beside_each=2,
    )
    assert [len(part) for part in passed] == [4, 2] * 4, "no pack is larger than a micro-batch"
    passed = [[*passed[number], *passed[number + 1]] for number in range(0, 8, 2)]
    beside = [[e for e in batch if e.kind == "other"] for batch in passed]
    assert Counter(id(e) for batch in beside[:3] for e in batch) == {id(e): 2 for e in others}
    own = [{id(e) for e in batch if e.kind != "other"} for batch in passed]
    assert own == [{id(e) for e in batch_at(tiny.training, 4, 3, step)} for step in range(4)]


def test_the_rate_warms_up_and_falls_along_a_cosine() -> None:
    recipe = replace(RECIPE, max_steps=100, warmup=0.1)
    rates = [schedule(step, recipe) for step in range(101)]
    assert rates[:10] == pytest.approx([0.1 * n for n in range(1, 11)])
    assert (rates[10], rates[55], rates[100]) == pytest.approx((1.0, 0.5, 0.0))
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert schedule(0, replace(recipe, max_steps=1)) == 1.0


def test_or_along_a_line() -> None:
    recipe = replace(RECIPE, max_steps=100, warmup=0.1, decay="linear")
    cosine = replace(recipe, decay="cosine")
    rates = [schedule(step, recipe) for step in range(101)]
    assert rates[:10] == [schedule(step, cosine) for step in range(10)]
    assert rates[10:] == pytest.approx([1 - n / 90 for n in range(91)])


def test_every_example_is_seen_once_an_epoch_in_an_order_of_its_own(tiny: TinyTraining) -> None:
    examples = tiny.training
    epochs = [batch_at(examples, len(examples), 3, step) for step in range(3)]
    assert all(Counter(map(id, epoch)) == Counter(map(id, examples)) for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert [e for step in range(7) for e in batch_at(examples, 3, 3, step)] == [e for epoch in epochs for e in epoch]


def test_micro_batches_hold_every_example_once(tiny: TinyTraining) -> None:
    mixed = [replace(e, kind=kind) for e in tiny.training for kind in ("question", "summary")]
    parts = micro_batches(mixed, 4)
    assert [len(part) for part in parts] == [4, 4, 4, 2]
    assert sorted(map(id, mixed)) == sorted(id(e) for part in parts for e in part)
    assert micro_batches([], 4) == []


def test_long_examples_pass_fewer_at_a_time(tiny: TinyTraining) -> None:
    """As a base with a chunk of a document: its whole target is there to be predicted."""
    lengths = [MICRO_LENGTH // 2] * 3 + [MICRO_LENGTH, 2 * MICRO_LENGTH, 2 * MICRO_LENGTH, 5 * MICRO_LENGTH]
    student = tiny.training[0].student
    examples = [replace(tiny.training[0], target=(65,) * (length - len(student))) for length in lengths]
    parts = [[len(e) // (MICRO_LENGTH // 2) for e in part] for part in micro_batches(examples, 4)]
    assert parts == [[1, 1, 1, 2], [4, 4], [10]]
    assert [len(part) for part in micro_batches(examples, 1)] == [1] * 7
