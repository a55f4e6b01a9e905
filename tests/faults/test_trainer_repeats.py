"""The real trainer makes the same module again: whatever its process hashes strings with, and when it was killed meanwhile."""

from __future__ import annotations

import json
import random
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.real_trainer import RECIPE, real_trainer, tiny_base_on_disk, write_spec
from worker.events import ExitCode


@dataclass(frozen=True, kw_only=True)
class Run:
    """`points`: (stage, done) of its progress, as it told them."""

    digest: str
    curve: dict[str, Any]
    points: list[tuple[str, int]]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base_on_disk(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Run:
    job = tmp_path_factory.mktemp("undisturbed") / "job"
    write_spec(job, base)
    return finished(job, hash_seed=1)


def finished(job: Path, hash_seed: int) -> Run:
    with real_trainer(job, PYTHONHASHSEED=str(hash_seed)) as trainer:
        assert trainer.end() == ExitCode.RESULT
    [result] = trainer.events("result")
    return Run(
        digest=result["digest"],
        curve=json.loads((job / "checkpoint" / "state.json").read_text()),
        points=[(event["stage"], event["done"]) for event in trainer.events("progress")],
    )


def test_the_digest_does_not_depend_on_the_hash_seed(tmp_path: Path, base: Path, undisturbed: Run) -> None:
    write_spec(tmp_path / "job", base)
    again = finished(tmp_path / "job", hash_seed=2)
    assert again.digest == undisturbed.digest
    assert again.curve == undisturbed.curve


def test_killed_between_two_checkpoints_it_ends_with_the_same_curve(tmp_path: Path, base: Path, undisturbed: Run) -> None:
    job = tmp_path / "job"
    write_spec(job, base)
    with real_trainer(job, PYTHONHASHSEED="3") as first:
        first.until("fitting", 14)
        first.process.send_signal(signal.SIGKILL)
        assert first.end() == -signal.SIGKILL
    reached = json.loads((job / "checkpoint" / "state.json").read_text())["step"]
    assert reached % RECIPE["evaluate_every"] == 0
    assert 0 < reached < RECIPE["max_steps"], "it was killed too late to prove anything"
    write_spec(job, base, attempt=2)
    resumed = finished(job, hash_seed=4)
    assert resumed.curve["losses"] == pytest.approx(undisturbed.curve["losses"], abs=1e-4)
    assert resumed.digest == undisturbed.digest


@pytest.mark.slow
def test_killed_at_five_random_points_it_ends_with_the_same_curve(tmp_path: Path, base: Path, undisturbed: Run) -> None:
    """Five of all points that it tells of, while it writes texts, runs the teacher and fits."""
    job, points = tmp_path / "job", sorted(random.Random(5).sample(range(len(undisturbed.points) - 1), 5))
    for attempt, point in enumerate(points, 1):
        write_spec(job, base, attempt=attempt)
        with real_trainer(job, PYTHONHASHSEED=str(attempt)) as trainer:
            trainer.until(*undisturbed.points[point])
            trainer.process.kill()
            assert trainer.end() == -signal.SIGKILL, "it was killed too late to prove anything"
    write_spec(job, base, attempt=6)
    resumed = finished(job, hash_seed=6)
    assert resumed.curve["losses"] == pytest.approx(undisturbed.curve["losses"], abs=1e-4)
    assert resumed.digest == undisturbed.digest
