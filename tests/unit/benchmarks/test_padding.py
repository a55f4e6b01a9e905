"""The count of padded tokens."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.padding import count
from server.engine.prompt import Prompt
from worker.training.examples import Example
from worker.training.recipe import QUICK


def example(kind: str, prompt: tuple[int, ...], target: int) -> Example:
    return Example(kind=kind, teacher=None, student=Prompt(bare=(), adapted=prompt), target=(7,) * target)


def test_of_a_micro_batch_what_is_read_once_is_not_padded() -> None:
    header = tuple(range(10))
    rows = [example("question", (*header, n, n), target) for n, target in ((20, 1), (30, 2), (40, 5))]
    counts = count(rows, replace(QUICK, max_steps=2, batch_size=3))
    # A step: ten tokens once, and 3, 4 and 7 of the rows, of which 4 asks together with 7.
    assert (counts.micro_batches, counts.tokens, counts.padding, counts.saved) == (2, 2 * 24, 2 * 3, 2 * 20)
    assert counts.share == 6 / 54


def test_rows_of_all_kinds_pass_together() -> None:
    rows = [example("question", (1, 2), 1), example("recitation", (1, 2, 3), 6)]
    counts = count(rows, replace(QUICK, max_steps=1, batch_size=2))
    assert (counts.micro_batches, counts.tokens, counts.padding) == (1, 12, 0)
