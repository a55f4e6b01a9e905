"""The estimate of a training's rest."""

from __future__ import annotations

from dataclasses import replace

import pytest

from worker.progress import STAGES, Remaining
from worker.training.recipe import PRESETS, QUICK

RECIPE = replace(QUICK, questions=4, question_tokens=40, summaries=0, synthesis_batch=10, batch_size=8, max_steps=50)
TEACHING, FITTING, GATING = 100 * 0.3, 50 * 8 * 0.3, 100 * 0.1
"""What the stages of 100 generations cost, in generations."""


def after(*reports: tuple[str, int, int, float]) -> float | None:
    """The last of the estimates."""
    remaining = Remaining(RECIPE)
    found = [remaining.after(*report) for report in reports]
    return found[-1]


def test_there_is_none_without_a_pace() -> None:
    assert after(("loading", 1, 1, 9.0)) is None
    assert after(("loading", 0, 1, 0.0), ("loading", 1, 1, 30.0), ("synthesising", 0, 100, 30.0)) is None


def test_the_first_of_a_round_of_generations_says_nothing() -> None:
    """They end together: the first would tell ten times the truth."""
    assert after(("synthesising", 0, 100, 0.0), ("synthesising", 1, 100, 20.0)) is None
    assert after(("synthesising", 0, 100, 0.0), ("synthesising", 10, 100, 20.0)) == 2.0 * (90 + TEACHING + FITTING + GATING)
    assert after(("synthesising", 97, 100, 0.0), ("synthesising", 100, 100, 6.0)) == 2.0 * (TEACHING + FITTING + GATING)


def test_it_is_of_the_whole_job_and_not_of_the_stage() -> None:
    half = after(("synthesising", 0, 100, 0.0), ("synthesising", 50, 100, 50.0))
    assert half == 50 + TEACHING + FITTING + GATING


def test_a_stage_that_has_no_pace_yet_is_reckoned_by_those_before() -> None:
    """With its own number of examples, which is known now."""
    rest = after(("synthesising", 0, 100, 0.0), ("synthesising", 100, 100, 200.0), ("teaching", 8, 60, 210.0))
    assert rest == pytest.approx(2.0 * (52 * 0.3 + FITTING + 60 * 0.1))


def test_a_stage_with_a_pace_is_reckoned_by_it() -> None:
    before = [("synthesising", 0, 100, 0.0), ("synthesising", 100, 100, 100.0), ("fitting", 1, 50, 100.0)]
    rest = after(*before, ("fitting", 11, 50, 150.0))
    speed = 150 / (100 + 10 * 8 * 0.3)
    assert rest == pytest.approx(39 * 5.0 + speed * GATING, abs=0.1)


def test_what_an_earlier_attempt_did_is_no_pace() -> None:
    """Resumed in the fit: nothing was generated or taught, so there is nothing to tell of its first step, and then its own pace."""
    resumed = [("synthesising", 100, 100, 0.0), ("fitting", 31, 50, 4.0)]
    assert after(*resumed) is None
    rest = after(*resumed, ("fitting", 32, 50, 6.4))
    assert rest == pytest.approx(18 * 2.4 + 1.0 * GATING)


def test_without_generations_it_begins_with_the_teacher() -> None:
    assert after(("synthesising", 0, 0, 0.0)) is None
    rest = after(("synthesising", 0, 0, 0.0), ("teaching", 8, 40, 1.0), ("teaching", 18, 40, 4.0))
    assert rest == pytest.approx(22 * 0.3 + FITTING + 40 * 0.1)


def test_it_falls_to_nothing() -> None:
    reports = [(stage, done, 40, float(10 * index + done)) for index, stage in enumerate(STAGES[:2]) for done in (0, 20, 40)]
    reports += [("fitting", 25, 50, 80.0), ("fitting", 50, 50, 140.0), ("gating", 0, 1, 141.0), ("gating", 1, 1, 150.0)]
    remaining = Remaining(RECIPE)
    told = [found for report in reports if (found := remaining.after(*report)) is not None]
    assert told[-1] == 0.0
    assert all(found >= 0 for found in told)


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_each_preset_has_an_estimate_after_its_first_round(preset: str) -> None:
    remaining = Remaining(PRESETS[preset])
    remaining.after("synthesising", 0, 320, 0.0)
    found = remaining.after("synthesising", 32, 320, 32.0)
    assert found is not None
    assert found > 288
