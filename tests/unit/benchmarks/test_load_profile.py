"""Where the time of a load goes: on a processor, or asleep; loads still do what they did."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from benchmarks.serving import load_profile
from benchmarks.serving.figures import MEASURES
from benchmarks.serving.load_profile import LoadProfile


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module whose functions stand for a load's steps."""
    stand_in = ModuleType("stand_in")
    stand_in.busy, stand_in.idle = _busy, _idle  # type: ignore[attr-defined]
    monkeypatch.setattr(load_profile, "_STEPS", {"busy": (stand_in, "busy"), "idle": (stand_in, "idle")})
    return stand_in


def test_a_step_that_computes_is_not_asleep_and_one_that_sleeps_is(steps: Any) -> None:
    with LoadProfile().watching() as profile:
        assert (steps.busy(0.2), steps.idle(0.2)) == ("busy", "idle")
    assert (steps.busy, steps.idle) == (_busy, _idle)
    sums = profile.sums()
    assert set(sums["busy"]) == set(MEASURES)
    assert sums["busy"]["wall"] >= sums["busy"]["user"] + sums["busy"]["system"] >= 0.15
    assert sums["idle"]["asleep"] >= 0.15
    assert sums["busy"]["asleep"] < 0.1


def test_a_step_that_fails_counts_and_its_error_passes(steps: Any) -> None:
    with LoadProfile().watching() as profile, pytest.raises(TypeError):
        steps.idle("soon")
    assert profile.sums()["idle"]["wall"] > 0


def test_the_steps_are_where_the_engine_finds_them() -> None:
    found: list[Callable[..., Any]] = [getattr(module, name) for module, name in load_profile._STEPS.values()]
    assert all(map(callable, found))


def _busy(seconds: float) -> str:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass
    return "busy"


def _idle(seconds: float) -> str:
    time.sleep(seconds)
    return "idle"
