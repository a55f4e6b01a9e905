"""How long a training will still take, from what it has done so far. Knows nothing of clocks: whoever reports says what time it is.

A stage that has a pace of its own is reckoned by it. Those that follow are reckoned by what their units cost relative to the units done
so far: rough figures of a small model on a CPU, replaced by the truth as soon as a stage has begun.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

from worker.synthesis.kinds import WRITTEN
from worker.training.recipe import Recipe

STAGES: Final = ("synthesising", "teaching", "fitting", "gating")
"""Those with a cost, in their order. Loading says nothing about the speed of the rest."""
_GENERATION_TOKENS: Final = 40
"""A generation of so many tokens costs 1."""
_EXAMPLE: Final = 0.3
"""One forward pass of a teacher, or forward and backward of a student, which has no context to read."""
_GATE: Final = 0.1
"""For each example there is: the tenth that is held out is measured several times."""


class Estimate(Protocol):
    def after(self, stage: str, done: int, total: int, now: float) -> float | None:
        """Seconds from `now` to the end of the job, None while nothing can be said."""
        ...


@dataclass(kw_only=True)
class _Stage:
    first: int
    began: float
    done: int
    total: int
    seconds: float = 0.0

    @property
    def finished(self) -> int:
        """Units of this attempt: an earlier one's say nothing about the pace."""
        return self.done - self.first


class Remaining:
    """One for a run of a recipe; told every report in order."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._stages: dict[str, _Stage] = {}

    def after(self, stage: str, done: int, total: int, now: float) -> float | None:
        """Seconds from `now` to the end of the job, by a clock of any origin; None until a stage has a pace.

        At most, roughly: a fit that stops improving ends before its last step.
        """
        if stage not in STAGES:
            return None
        seen = self._stages.setdefault(stage, _Stage(first=done, began=now, done=done, total=total))
        seen.done, seen.total, seen.seconds = done, total, now - seen.began
        speed = self._seconds_per_cost()
        if speed is None:
            return None
        pace = seen.seconds / seen.finished if self._has_pace(stage) else self._cost(stage) * speed
        later = STAGES[STAGES.index(stage) + 1 :]
        return round(pace * (total - done) + speed * sum(self._cost(name) * self._units(name) for name in later), 1)

    def _seconds_per_cost(self) -> float | None:
        measured = [name for name in self._stages if self._has_pace(name)]
        cost = sum(self._cost(name) * self._stages[name].finished for name in measured)
        return sum(self._stages[name].seconds for name in measured) / cost if cost else None

    def _has_pace(self, name: str) -> bool:
        """Generations run many at a time and end together: one round of them must be over, or all that there are."""
        seen = self._stages[name]
        least = self._recipe.synthesis_batch if name == "synthesising" else 1
        return seen.finished >= max(1, min(least, seen.total - seen.first))

    def _cost(self, name: str) -> float:
        recipe = self._recipe
        match name:
            case "synthesising":
                longest = max((getattr(recipe, kind.tokens) for kind in WRITTEN if getattr(recipe, kind.count)), default=0)
                return float(longest / _GENERATION_TOKENS)
            case "teaching":
                return _EXAMPLE
            case "fitting":
                return _EXAMPLE * recipe.batch_size / (1 - recipe.guard)
            case _:
                return _GATE * self._units("teaching")

    def _units(self, name: str) -> int:
        """Of a stage that has not begun: generations become about as many examples, recitations make up for those that are dropped."""
        if name == "teaching":
            known = self._stages.get("teaching") or self._stages.get("synthesising")
            return known.total if known else 0
        return self._recipe.max_steps if name == "fitting" else 1


class FittingPace:
    """The estimate of a run that is all fitting, as an extractor's."""

    def __init__(self) -> None:
        self._began: tuple[int, float] | None = None

    def after(self, stage: str, done: int, total: int, now: float) -> float | None:
        if stage != "fitting":
            return None
        first, began = self._began = self._began or (done, now)
        return round((now - began) / (done - first) * (total - done), 1) if done > first else None
