"""Where the time of a load goes: on a processor, or asleep; loads still do what they did."""

from __future__ import annotations

import os
import time
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from benchmarks.serving import load_profile
from benchmarks.serving.figures import MEASURES
from benchmarks.serving.load_profile import LAY_OUT, PROVE, READ, WHOLE, LoadProfile, moved
from server.engine.adapter_loader import loader
from server.engine.base_model import adapted_layers
from server.engine.host_cache import HostCache
from server.modules.artefact import write_artefact
from tests.support.tiny_models import tiny_artefact, tiny_base

TICK = 1 / os.sysconf("SC_CLK_TCK")
"""Seconds that the system may count of a processor's time before they have passed."""


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
    assert sums["busy"]["wall"] + TICK >= sums["busy"]["user"] + sums["busy"]["system"] >= 0.15
    assert sums["idle"]["asleep"] >= 0.15
    assert sums["busy"]["asleep"] < 0.1


def test_a_step_that_fails_counts_and_its_error_passes(steps: Any) -> None:
    with LoadProfile().watching() as profile, pytest.raises(TypeError):
        steps.idle("soon")
    assert profile.sums()["idle"]["wall"] > 0


def test_a_load_of_the_engine_goes_through_every_step_once(tmp_path: Path) -> None:
    base, artefact = tiny_base(), tiny_artefact(tiny_base(), 1)
    ref = write_artefact(tmp_path / "module", a=artefact.a, b=artefact.b, manifest=artefact.manifest, base_model_name="tiny")
    with LoadProfile().watching() as profile, closing(HostCache(loader(base, adapted_layers(base.model), 8), 0)) as cache:
        cache.fetch(ref).result(30)
        once = profile.sums()
        HostCache(loader(base, adapted_layers(base.model), 8), 0).fetch(ref).result(30)
    assert set(once) == {WHOLE, READ, PROVE, LAY_OUT}
    assert all(0 < once[step]["wall"] <= once[WHOLE]["wall"] for step in once)
    assert all(after["wall"] > 0 for after in moved(once, profile.sums()).values())


def _busy(seconds: float) -> str:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass
    return "busy"


def _idle(seconds: float) -> str:
    time.sleep(seconds)
    return "idle"
