from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from server.db import jobs
from server.db.tables import JobState
from tests.support.rows import expire_lease
from tests.support.training_rig import Rig, eventually, make_rig
from worker.reaper import Reaper


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = make_rig(tmp_path, lease_seconds=60, reap_seconds=0.05, ring_seconds=30)
    yield rig
    rig.close()


def test_it_rings_at_the_start_and_only_then(rig: Rig) -> None:
    """What was rung for while no worker ran may be lost with the broker."""
    reaper = Reaper(rig.settings, rig.database, rig.ring)
    reaper.start()
    eventually(lambda: rig.rings == 1)
    reaper.stop()
    assert rig.rings == 1


def test_it_rings_for_what_it_reaps(rig: Rig) -> None:
    _, job_id = rig.upload([])
    rig.claim()
    with rig.database.write() as session:
        expire_lease(session, job_id)
    reaper = Reaper(rig.settings, rig.database, rig.ring)
    assert (reaper.round(), rig.job(job_id).state) == (True, JobState.QUEUED)
    assert reaper.round() is False


def test_it_removes_what_ended_jobs_left_behind(rig: Rig) -> None:
    kept, gone = rig.upload([]), rig.upload([])
    for document, job_id in (kept, gone):
        rig.directory(document, job_id).mkdir(parents=True)
        (rig.directory(document, job_id) / "spec.json").write_text("the document's text")
    rig.cancel(*gone)
    Reaper(rig.settings, rig.database, rig.ring).round()
    assert (rig.directory(*kept).exists(), rig.directory(*gone).exists()) == (True, False)
    assert not rig.directory(*gone).parent.exists()


def test_a_job_that_failed_by_reaping_leaves_nothing(rig: Rig) -> None:
    document, job_id = rig.upload([], max_attempts=1)
    rig.claim()
    rig.directory(document, job_id).mkdir(parents=True)
    with rig.database.write() as session:
        expire_lease(session, job_id)
    assert Reaper(rig.settings, rig.database, rig.ring).round() is False
    assert (rig.job(job_id).state, rig.directory(document, job_id).exists()) == (JobState.FAILED, False)


def test_a_failed_round_is_not_its_end(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rounds: list[int] = []
    real = jobs.reap_once

    def broken_at_first(*arguments: object, **options: object) -> jobs.Reaped:
        rounds.append(1)
        if len(rounds) == 1:
            raise OSError("disk I/O error")
        return real(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(jobs, "reap_once", broken_at_first)
    reaper = Reaper(rig.settings, rig.database, rig.ring)
    reaper.start()
    eventually(lambda: len(rounds) > 1)
    reaper.stop()
