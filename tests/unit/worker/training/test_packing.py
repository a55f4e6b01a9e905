"""The tree of a pack: what is read once, where each row is, who sees what."""

from __future__ import annotations

import random

import pytest
import torch

from worker.training.packing import MIN_SHARED, Pack, Row, Run, pack

CPU = torch.device("cpu")


def row(*tokens: int, shared: int | None = None, **changes: object) -> Row:
    return Row(tokens=tokens, shared=len(tokens) - 1 if shared is None else shared, **changes)  # type: ignore[arg-type]


def tokens_at(packed: Pack, path: tuple[int, ...]) -> tuple[int, ...]:
    ids = packed.ids[0].tolist()
    return tuple(ids[place - packed.read] for place in path if place >= packed.read)


def test_what_rows_begin_with_alike_is_read_once() -> None:
    packed = pack([row(1, 2, 3, 4, 5, 6), row(1, 2, 3, 4, 5, 7), row(1, 2, 3, 4, 8)], CPU)
    assert packed.ids.tolist() == [[1, 2, 3, 4, 5, 6, 5, 7, 8]]
    assert packed.positions.tolist() == [[0, 1, 2, 3, 4, 5, 4, 5, 4]]


def test_a_short_beginning_and_the_last_token_of_a_prompt_are_not_shared() -> None:
    assert pack([row(1, 2, 3, 9), row(1, 2, 3, 8)], CPU).tokens == 8
    assert pack([row(1, 2, 3, 4, 5, shared=3), row(1, 2, 3, 4, 6, shared=3)], CPU).tokens == 10
    alike = pack([row(1, 2, 3, 4, 5), row(1, 2, 3, 4, 5)], CPU)
    assert alike.ids.tolist() == [[1, 2, 3, 4, 5, 5]]


def test_rows_of_different_groups_share_nothing_and_lie_together() -> None:
    rows = [row(1, 2, 3, 4, 5, group=1), row(1, 2, 3, 4, 6, group=-1), row(1, 2, 3, 4, 7, group=1)]
    packed = pack(rows, CPU)
    assert packed.runs == [Run(group=-1, start=0, end=5), Run(group=1, start=5, end=11)]
    assert [tokens_at(packed, path) for path in packed.paths] == [each.tokens for each in rows]


def test_rows_that_go_on_from_an_earlier_pass_see_it_first() -> None:
    before = pack([row(1, 2, 3)], CPU)
    packed = pack([row(7, 8, after=before.paths[0]), row(9, after=())], CPU, before)
    assert packed.read == 3
    assert packed.paths == [(0, 1, 2, 4, 5), (3,)]
    assert packed.positions.tolist() == [[0, 3, 4]]


@pytest.mark.parametrize("seed", range(20))
def test_every_row_is_whole_whatever_they_share(seed: int) -> None:
    chance = random.Random(seed)
    beginnings = [tuple(chance.randrange(3) for _ in range(12)) for _ in range(3)]
    rows = []
    for _ in range(chance.randint(1, 12)):
        tokens = chance.choice(beginnings)[: chance.randint(1, 12)] + tuple(chance.randrange(3) for _ in range(chance.randint(1, 9)))
        rows.append(Row(tokens=tokens, shared=chance.randrange(len(tokens)), group=chance.randrange(2)))
    packed = pack(rows, CPU)
    assert [tokens_at(packed, path) for path in packed.paths] == [each.tokens for each in rows]
    positions = packed.positions[0].tolist()
    assert all([positions[place] for place in path] == list(range(len(path))) for path in packed.paths)
    assert all(
        len(node.tokens) >= MIN_SHARED or node.first + len(node.tokens) - 1 in {path[-1] for path in packed.paths} for node in packed.nodes
    )
    assert packed.padding < packed.tokens
    groups = [run.group for run in packed.runs]
    assert groups == sorted(set(groups))
