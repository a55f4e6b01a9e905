from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import torch

from server.engine.request import Sampling
from server.engine.sampling import NUCLEUS_GUESS, Draw, sample

LOGITS = torch.tensor([2.0, 1.0, 0.0, -1.0])


def draws(count: int, logits: torch.Tensor = LOGITS, **sampling: Any) -> list[int]:
    draw = Draw(replace(Sampling(temperature=1.0), **sampling))
    return [draw.pick(logits) for _ in range(count)]


def test_temperature_zero_takes_the_best() -> None:
    assert sample(torch.stack((LOGITS, LOGITS.flip(0))), [Draw(Sampling()), Draw(Sampling())]) == [0, 3]


def test_frequencies_follow_the_probabilities() -> None:
    seen = Counter(draws(4000))
    for token, probability in enumerate(torch.softmax(LOGITS, -1).tolist()):
        assert abs(seen[token] / 4000 - probability) < 0.03


def test_a_lower_temperature_sharpens() -> None:
    assert Counter(draws(500, temperature=0.3))[0] > Counter(draws(500, temperature=2.0))[0]


def test_top_p_keeps_the_smallest_set_that_reaches_it() -> None:
    first, second = torch.softmax(LOGITS, -1)[:2].tolist()
    assert set(draws(500, top_p=first - 0.01)) == {0}
    assert set(draws(500, top_p=first + 0.01)) == {0, 1}
    assert set(draws(500, top_p=first + second + 0.01)) == {0, 1, 2}


def test_top_k_keeps_that_many_and_top_p_counts_among_them() -> None:
    assert set(draws(500, top_k=1)) == {0}
    assert set(draws(500, top_k=3)) == {0, 1, 2}
    assert set(draws(500, top_k=99)) == {0, 1, 2, 3}
    of_two = float(torch.softmax(LOGITS[:2], -1)[0])
    assert set(draws(500, top_k=2, top_p=of_two - 0.01)) == {0}
    assert set(draws(500, top_k=2, top_p=of_two + 0.01)) == {0, 1}


def test_a_nucleus_wider_than_the_guess_is_found() -> None:
    flat = torch.zeros(2 * NUCLEUS_GUESS)
    assert max(draws(40, flat, top_p=0.9)) > NUCLEUS_GUESS


def test_a_seed_repeats_its_draws_whatever_runs_beside_it() -> None:
    alone = [sample(LOGITS[None], [draw])[0] for draw in [Draw(Sampling(temperature=1, seed=7))] for _ in range(20)]
    draw, neighbour = Draw(Sampling(temperature=1, seed=7)), Draw(Sampling(temperature=1, seed=8))
    together = [sample(LOGITS.expand(2, -1), [neighbour, draw])[1] for _ in range(20)]
    assert alone == together
    assert alone != draws(20, seed=8)


def test_numbers_that_are_not_finite_give_no_token() -> None:
    broken = torch.tensor([float("nan"), 1.0, 2.0, 3.0])
    endless = torch.tensor([float("inf"), 1.0, 2.0, 3.0])
    drawing = [Draw(Sampling()), Draw(Sampling(temperature=1)), Draw(Sampling())]
    assert sample(torch.stack((broken, endless, LOGITS)), drawing) == [None, None, 0]
