"""Windows of a document."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.support.tiny_document import document
from worker.training.objectives.ddcd import DDCD, window_size, window_starts
from worker.training.recipe import Recipe

RECIPE = Recipe(preset="quick", objective="ddcd", chunk_tokens=50)
TEXT = "".join(f"{i:03}." for i in range(250))


@pytest.mark.parametrize(("tokens", "size"), [(1000, 100), (200, 100), (150, 75), (3, 2), (0, 2)])
def test_a_window_is_two_chunks_or_half_of_a_short_document(tokens: int, size: int) -> None:
    assert window_size(tokens, RECIPE) == size


@pytest.mark.parametrize(("share", "target"), [(0.5, 50), (0.23, 23), (0.001, 1), (0.999, 99)])
def test_its_last_part_is_the_target(share: float, target: int) -> None:
    """Half in the paper, 23 % in its authors' code; there is something to read and something to predict in any case."""
    data = DDCD().data(document(TEXT), replace(RECIPE, ddcd_target=share), 0)
    for example in data.training + data.held_out:
        assert len(example.target) == target
        assert len(example.context) - len(example.student) == 100 - target


def test_there_are_so_many_for_every_windows_length() -> None:
    assert len(window_starts(1000, 100, 16, 0)) == 160
    assert len(window_starts(1001, 100, 16, 0)) == 176
    assert sorted(window_starts(12, 6, 16, 0)) == list(range(7)), "no window twice"


def test_every_tenth_is_held_out_and_none_of_them_is_trained_on() -> None:
    data = DDCD().data(document(TEXT), RECIPE, 0)
    assert (len(data.training), len(data.held_out)) == (144, 16)
    assert {example.context.ids for example in data.training}.isdisjoint(example.context.ids for example in data.held_out)
