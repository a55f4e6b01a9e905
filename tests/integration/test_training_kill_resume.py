"""A fit that is killed wherever it stands goes on to the very curve of one that nobody disturbed."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.tiny_training import RECIPE, TinyTraining, tiny_training
from worker.training.fit import FitState, Stopped

LONG = replace(RECIPE, max_steps=40, evaluate_every=6, patience=40, dropout=0.1)
POINTS = sorted(random.Random(7).sample(range(1, LONG.max_steps), 5))


class Killed(BaseException):
    """Unlike `Stopped`, nothing is written on the way out."""


class Kill:
    """At each of the points once, in order."""

    def __init__(self, with_what: type[BaseException]) -> None:
        self._left = list(POINTS)
        self._with_what = with_what
        self.count = 0

    def __call__(self, state: FitState) -> None:
        if self._left and state.step >= self._left[0]:
            self._left.pop(0)
            self.count += 1
            raise self._with_what


def curve(folder: Path, on_step: Any = lambda state: None) -> dict[str, Any]:
    """What a new process finds in the last checkpoint, once it has ended."""
    tiny = tiny_training(folder)
    while not attempt(tiny, on_step):
        pass
    state: dict[str, Any] = json.loads((folder / "checkpoint" / "state.json").read_text())
    return state


def attempt(tiny: TinyTraining, on_step: Any) -> bool:
    """Whether it came to its end. Every attempt begins as a process does, with a student of its own."""
    student = tiny.student(LONG)
    try:
        tiny.fit(student, on_step, recipe=LONG)
    except (Stopped, Killed):
        return False
    finally:
        student.unload()
    return True


@pytest.mark.parametrize("with_what", [Stopped, Killed])
def test_five_kills_leave_the_curve_as_it_is(tmp_path: Path, with_what: type[BaseException]) -> None:
    kill = Kill(with_what)
    undisturbed, disturbed = curve(tmp_path / "whole"), curve(tmp_path / "parts", kill)
    assert kill.count == 5
    assert len(disturbed["losses"]) == LONG.max_steps
    assert disturbed["losses"] == pytest.approx(undisturbed["losses"], abs=1e-4)
    assert [step for step, _ in disturbed["held_out"]] == [step for step, _ in undisturbed["held_out"]]
    assert [loss for _, loss in disturbed["held_out"]] == pytest.approx([loss for _, loss in undisturbed["held_out"]], abs=1e-4)
