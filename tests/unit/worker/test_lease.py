"""The lease's thread around a trainer process; what the trainer is does not matter here."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.db.session import SyncDatabase
from server.db.tables import Job
from tests.support.rows import expire_lease
from tests.support.training_rig import Rig, eventually, make_rig
from worker import lease as lease_module
from worker.lease import Lease
from worker.trainer_process import TrainerProcess

SLEEP = (sys.executable, "-I", "-c", "import time; print('ready', flush=True); time.sleep(60)")


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = make_rig(tmp_path)
    yield rig
    rig.close()


@pytest.fixture
def trainer(tmp_path: Path) -> Iterator[TrainerProcess]:
    with TrainerProcess(SLEEP, tmp_path, tmp_path / "log", grace_seconds=5) as trainer:
        yield trainer


def claimed(rig: Rig) -> Job:
    rig.upload([])
    return rig.claim()


def test_it_outlives_its_first_seconds(rig: Rig, trainer: TrainerProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "SLOWEST_BEAT_SECONDS", 0.05)
    job = claimed(rig)
    with Lease(rig.database, job, 60, threading.Event()) as lease:
        lease.governs(trainer)
        for _ in range(2):
            with rig.database.write() as session:
                expire_lease(session, job.id)
            eventually(lambda: (rig.job(job.id).lease_until or 0) > time.time())
    assert (lease.cancelled, lease.lost, trainer.asked_to_stop) == (False, False, False)


def test_a_database_out_of_reach_for_a_whole_lease_ends_the_trainer(rig: Rig, trainer: TrainerProcess, tmp_path: Path) -> None:
    """Another worker may have the job by then; this one cannot know."""
    out_of_reach = SyncDatabase(f"sqlite:///{tmp_path}/no/such/folder/kmserve.db")
    started = time.monotonic()
    with Lease(out_of_reach, claimed(rig), 0.5, threading.Event()) as lease:
        lease.governs(trainer)
        assert trainer.wait() == -signal.SIGKILL
    assert lease.lost
    assert time.monotonic() - started > 0.5


def test_shutdown_asks_the_trainer_once(rig: Rig, trainer: TrainerProcess) -> None:
    stopping = threading.Event()
    with Lease(rig.database, claimed(rig), 60, stopping) as lease:
        lease.governs(trainer)
        stopping.set()
        assert trainer.wait() == -signal.SIGTERM
    assert (lease.cancelled, lease.lost, trainer.asked_to_stop) == (False, False, True)


def test_what_was_asked_before_there_was_a_trainer_still_ends_it(rig: Rig, tmp_path: Path) -> None:
    """A job's artefacts are fetched first."""
    stopping = threading.Event()
    stopping.set()
    with Lease(rig.database, claimed(rig), 60, stopping) as lease:
        time.sleep(0.3)
        with TrainerProcess(SLEEP, tmp_path, tmp_path / "log", grace_seconds=5) as trainer:
            lease.governs(trainer)
            assert trainer.wait() == -signal.SIGTERM
