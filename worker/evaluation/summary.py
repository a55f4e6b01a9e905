"""What a run comes to: each line's measures with intervals, and each against the line before it. Values in, values out; no files.

Intervals are the central 95 %; `difference` is this line minus the line before, with its interval and the p-values of flipping signs. A
smaller NLL is better, a larger score.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from worker.evaluation.measures import difference, interval, question_mean, sign_flip, sign_flip_stories
from worker.evaluation.rows import Line
from worker.evaluation.runner import Measurement

_KEPT_DECIMALS = {"rouge_l": 1, "accuracy": 0, "accuracy_hard": 0, "letter": 0, "gold_nll": 3, "gold_nll_eos": 3}


@dataclass(frozen=True, kw_only=True)
class Estimate:
    mean: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Of a line with another, question by question. `p`: over these documents and their modules, as if other questions were drawn;
    `p_documents`: as if other documents were, with modules of their own."""

    difference: Estimate
    p: float
    p_documents: float


@dataclass(frozen=True, kw_only=True)
class Summary:
    measurement: Measurement
    measures: dict[str, Estimate]
    against_previous: dict[str, Comparison]
    """Empty for the first line."""
    values: dict[str, list[list[float]]]
    """Of each measure, one for each question of each document: what any two lines are compared by."""

    @property
    def line(self) -> Line:
        return self.measurement.line

    @property
    def prompt_tokens(self) -> float:
        return self.measurement.prompt_tokens


def summarise(measurements: Iterable[Measurement], seed: int = 0) -> Iterator[Summary]:
    """Each as soon as it was measured."""
    before: Measurement | None = None
    for mine in measurements:
        yield _summary(mine, before, seed)
        before = mine


def main_measure(measures: Sequence[str]) -> str:
    """The score of the paper's tables and of Figure 1."""
    return "accuracy" if "accuracy" in measures else "rouge_l"


def as_json(summaries: Sequence[Summary]) -> list[dict[str, Any]]:
    return [
        {
            "row": summary.line.row.name,
            "passages": summary.line.passages,
            "wears": {
                "objective": summary.line.row.objective,
                "module_of": summary.line.row.owner if summary.line.row.objective else None,
                "extractor": summary.line.row.extractor,
                "worn": summary.line.row.worn,
                "ones": summary.line.row.ones,
            },
            "modules": dict(summary.measurement.modules),
            "context": summary.line.row.context,
            "prompt_tokens": round(summary.prompt_tokens, 1),
            "measures": {name: _rounded(estimate) for name, estimate in summary.measures.items()},
            "against_previous": {
                name: {**_rounded(comparison.difference), "p": round(comparison.p, 5), "p_documents": round(comparison.p_documents, 5)}
                for name, comparison in summary.against_previous.items()
            },
            "values": {
                name: [[round(value, _KEPT_DECIMALS[name]) for value in story] for story in stories]
                for name, stories in summary.values.items()
            },
        }
        for summary in summaries
    ]


def _summary(mine: Measurement, before: Measurement | None, seed: int) -> Summary:
    values = {measure: mine.by_story(measure) for measure in mine.measures}
    compared = {} if before is None else {measure: compare(values[measure], before.by_story(measure), seed) for measure in mine.measures}
    return Summary(
        measurement=mine,
        measures={measure: _estimate(stories, seed) for measure, stories in values.items()},
        against_previous=compared,
        values=values,
    )


def compare(first: Sequence[Sequence[float]], second: Sequence[Sequence[float]], seed: int = 0) -> Comparison:
    """first - second, of two lines' values for the same questions."""
    paired = difference(first, second)
    return Comparison(difference=_estimate(paired, seed), p=sign_flip(paired, seed), p_documents=sign_flip_stories(paired, seed))


def _estimate(stories: Sequence[Sequence[float]], seed: int) -> Estimate:
    low, high = interval(stories, seed)
    return Estimate(mean=question_mean(stories), low=low, high=high)


def _rounded(estimate: Estimate) -> dict[str, float]:
    return {"mean": round(estimate.mean, 4), "low": round(estimate.low, 4), "high": round(estimate.high, 4)}
