"""The measures of the tables, as pure functions.

    rouge_l       Rouge-L F of stemmed words, the best reference, mean over questions, in per cent
    gold_nll      mean over questions of the mean token negative log-likelihood (nats) of the gold answer, without end of turn
    gold_nll_eos  the same with the end of turn as one more token
    accuracy      share of multiple-choice questions, in per cent, whose right option has the smallest mean token NLL
    accuracy_hard the same of the questions that the dataset marks as difficult
    letter        as accuracy, by the letter that the model finds likeliest when it reads the lettered options

Intervals are bootstrapped over stories, then over each story's questions; a difference of two modes is paired by question, and tested over
these questions and over these stories.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from itertools import product
from operator import mul
from statistics import fmean

from rouge_score.rouge_scorer import RougeScorer  # type: ignore[import-untyped]

RESAMPLES = 2000
EXACT_STORIES = 16
"""Up to so many, all their signs are gone through."""


class RougeL:
    def __init__(self) -> None:
        self._scorer = RougeScorer(["rougeL"], use_stemmer=True)

    def best(self, answer: str, references: Sequence[str]) -> float:
        """Per cent, 0 to 100."""
        return 100.0 * max(float(self._scorer.score(reference, answer)["rougeL"].fmeasure) for reference in references)


def mean_nll(logprobs: Sequence[float]) -> float:
    return -fmean(logprobs)


def likeliest_option(options: Sequence[Sequence[float]]) -> int:
    """The index of the option with the smallest mean token NLL, given each one's token log-probabilities; the first of equals."""
    return min(range(len(options)), key=lambda index: mean_nll(options[index]))


def question_mean(stories: Sequence[Sequence[float]]) -> float:
    """The mean over all questions; `stories` holds one value per question of each story."""
    return fmean(value for story in stories for value in story)


def interval(stories: Sequence[Sequence[float]], seed: int = 0) -> tuple[float, float]:
    """The central 95 % of the bootstrapped `question_mean`."""
    draw = random.Random(seed)
    means = sorted(
        question_mean([draw.choices(story, k=len(story)) for story in draw.choices(stories, k=len(stories))]) for _ in range(RESAMPLES)
    )
    return means[round(0.025 * RESAMPLES)], means[round(0.975 * RESAMPLES) - 1]


def difference(first: Sequence[Sequence[float]], second: Sequence[Sequence[float]]) -> list[list[float]]:
    """first - second, question by question."""
    return [[a - b for a, b in zip(left, right, strict=True)] for left, right in zip(first, second, strict=True)]


def sign_flip(differences: Sequence[Sequence[float]], seed: int = 0) -> float:
    """The two-sided p-value of paired differences: how often their mean is at least as far from 0 when signs are drawn by chance.

    Each question is flipped on its own, so that a story's ease, which both rows share, plays no part. The given signs count as one of the
    draws: p is never 0.
    """
    values = [value for story in differences for value in story]
    far = _as_far(values, _drawn(len(values), seed))
    return (1 + far) / (1 + RESAMPLES)


def sign_flip_stories(differences: Sequence[Sequence[float]], seed: int = 0) -> float:
    """The same with all of a story's questions flipped together: they share one module, so that what chance there is in its training is
    the same for all of them. Of n stories p is at least 2 / 2^n: 8 can give 0.008, 4 no less than 0.125."""
    values = [sum(story) for story in differences]
    if len(values) <= EXACT_STORIES:
        return _as_far(values, product((1, -1), repeat=len(values))) / (1 << len(values))
    return (1 + _as_far(values, _drawn(len(values), seed))) / (1 + RESAMPLES)


def _as_far(values: Sequence[float], flips: Iterable[Sequence[int]]) -> int:
    """How many of the flips leave the sum at least as far from 0 as it is."""
    bound = abs(sum(values)) * (1 - 1e-12)
    return sum(abs(sum(map(mul, values, signs))) >= bound for signs in flips)


def _drawn(count: int, seed: int) -> Iterable[Sequence[int]]:
    draw = random.Random(seed)
    return ([1 if draw.getrandbits(1) else -1 for _ in range(count)] for _ in range(RESAMPLES))
