"""The measures of the tables, as pure functions.

    rouge_l    Rouge-L F of stemmed words, the best reference, mean over questions, in per cent
    gold_nll   mean over questions of the mean token negative log-likelihood (nats) of the gold answer, without end of turn

Intervals are bootstrapped over stories, then over each story's questions; a difference of two modes is paired by question.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from statistics import fmean

from rouge_score.rouge_scorer import RougeScorer  # type: ignore[import-untyped]

RESAMPLES = 2000


class RougeL:
    def __init__(self) -> None:
        self._scorer = RougeScorer(["rougeL"], use_stemmer=True)

    def best(self, answer: str, references: Sequence[str]) -> float:
        """Per cent, 0 to 100."""
        return 100.0 * max(float(self._scorer.score(reference, answer)["rougeL"].fmeasure) for reference in references)


def mean_nll(logprobs: Sequence[float]) -> float:
    return -fmean(logprobs)


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
