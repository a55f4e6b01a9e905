"""What can go wrong between the bell, a real Celery worker and its trainer, on the embedded broker and database."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.db import documents, jobs
from server.db.tables import DocumentStatus, JobState
from server.jobs.bell import Bell
from tests.support.training_rig import Rig, Step, alive, eventually, fake_artefact, fake_extractor, make_rig, stage
from tests.support.worker_process import worker_process

HANG: Step = {"wait_for": "never"}


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """Its leases outlast a busy machine's pauses; a test in which one runs out ends it by hand."""
    rig = make_rig(tmp_path, lease_seconds=6)
    yield rig
    rig.close()


def ended(rig: Rig, job_id: str) -> bool:
    return rig.job(job_id).state in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)


def test_a_bell_wakes_an_idle_worker(tmp_path: Path) -> None:
    """With a reaper that would ring far too late."""
    rig = make_rig(tmp_path, reap_seconds=600, ring_seconds=600)
    with worker_process(rig.settings):
        eventually(lambda: "ready" in (tmp_path / "worker.log").read_text())
        document, job_id = rig.upload([fake_artefact(tmp_path / "made").step()])
        assert Bell(rig.settings).ring()
        eventually(lambda: ended(rig, job_id))
        assert (rig.job(job_id).state, rig.document(document).status) == (JobState.SUCCEEDED, DocumentStatus.READY)
    rig.close()


def test_a_bell_delivered_twice_trains_once(rig: Rig, tmp_path: Path) -> None:
    document, job_id = rig.upload([fake_artefact(tmp_path / "made").step()])
    bell = Bell(rig.settings)
    for _ in range(3):
        assert bell.ring()
    with worker_process(rig.settings), worker_process(rig.settings):
        eventually(lambda: ended(rig, job_id))
        eventually(lambda: not list((tmp_path / "broker").rglob("*.message")))
    assert (rig.job(job_id).attempt, len(rig.versions(document))) == (1, 1)


def test_a_lost_bell_is_rung_again(rig: Rig, tmp_path: Path) -> None:
    """Nobody rings: the worker finds the row by its reaper."""
    with worker_process(rig.settings):
        eventually(lambda: "ready" in (tmp_path / "worker.log").read_text())
        _, job_id = rig.upload([fake_artefact(tmp_path / "made").step()])
        eventually(lambda: rig.job(job_id).state == JobState.SUCCEEDED)


def test_kill_of_the_worker_ends_its_trainer_and_another_resumes(rig: Rig, tmp_path: Path) -> None:
    document, job_id = rig.upload([stage("fitting"), {**HANG, "only_attempt": 1}, fake_artefact(tmp_path / "made").step()])
    with worker_process(rig.settings) as worker:
        rig.reach(job_id, "fitting")
        pid = rig.trainer_pid(document, job_id)
        worker.kill()
    eventually(lambda: not alive(pid))
    assert rig.job(job_id).state == JobState.RUNNING
    rig.expire_lease(job_id)
    with worker_process(rig.settings):
        eventually(lambda: rig.job(job_id).state == JobState.SUCCEEDED)
    assert (rig.job(job_id).attempt, len(rig.versions(document))) == (2, 1)


def test_kill_of_the_worker_in_the_training_of_an_extractor_is_resumed_by_another(rig: Rig, tmp_path: Path) -> None:
    made = fake_extractor(tmp_path / "made")
    job_id = rig.train_extractor([stage("fitting"), {**HANG, "only_attempt": 1}, made.step()])
    with worker_process(rig.settings) as worker:
        rig.reach(job_id, "fitting")
        pid = rig.trainer_pid(None, job_id)
        worker.kill()
    eventually(lambda: not alive(pid))
    assert rig.job(job_id).state == JobState.RUNNING
    (rig.directory(None, job_id) / "kept").touch()
    rig.expire_lease(job_id)
    with worker_process(rig.settings):
        eventually(lambda: rig.job(job_id).state == JobState.SUCCEEDED)
        eventually(lambda: not rig.directory(None, job_id).exists())
    assert (rig.job(job_id).attempt, [each.composition_digest for each in rig.extractors()]) == (2, [made.composition])


def test_kill_of_the_trainer_is_retried(rig: Rig, tmp_path: Path) -> None:
    document, job_id = rig.upload([stage("fitting"), {**HANG, "only_attempt": 1}, fake_artefact(tmp_path / "made").step()])
    with worker_process(rig.settings):
        rig.reach(job_id, "fitting")
        os.kill(rig.trainer_pid(document, job_id), signal.SIGKILL)
        eventually(lambda: rig.job(job_id).state == JobState.QUEUED)
        rig.skip_wait(job_id)
        eventually(lambda: rig.job(job_id).state == JobState.SUCCEEDED)
    assert rig.job(job_id).attempt == 2


def test_a_job_whose_worker_always_dies_fails_in_the_end(rig: Rig) -> None:
    document, job_id = rig.upload([stage("loading"), HANG], max_attempts=1)
    with worker_process(rig.settings) as worker:
        rig.reach(job_id, "loading")
        worker.kill()
    rig.expire_lease(job_id)
    with worker_process(rig.settings):
        eventually(lambda: rig.job(job_id).state == JobState.FAILED)
        eventually(lambda: not rig.directory(document, job_id).exists())
    assert (rig.job(job_id).error or {})["code"] == "attempts_exhausted"
    assert rig.document(document).status == DocumentStatus.RETRIEVAL_READY


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_shutdown_writes_a_checkpoint_and_queues_the_job_again(rig: Rig, number: int) -> None:
    document, job_id = rig.upload([stage("fitting"), HANG], max_attempts=1)
    with worker_process(rig.settings) as worker:
        rig.reach(job_id, "fitting")
        pid = rig.trainer_pid(document, job_id)
        worker.terminate(number)
    assert (rig.job(job_id).state, rig.job(job_id).lease_owner, alive(pid)) == (JobState.QUEUED, None, False)
    assert (rig.directory(document, job_id) / "attempt-1" / "checkpoint").exists()
    assert list((rig.settings.root / "broker").rglob("*.message")), "the next worker is woken"


def test_an_idle_worker_shuts_down_at_once_with_code_0(rig: Rig, tmp_path: Path) -> None:
    with worker_process(rig.settings) as worker:
        eventually(lambda: "ready" in (tmp_path / "worker.log").read_text())
        assert worker.terminate() == 0


def test_cancel_through_a_real_worker(rig: Rig) -> None:
    document, job_id = rig.upload([stage("synthesising"), HANG])
    with worker_process(rig.settings):
        rig.reach(job_id, "synthesising")
        rig.cancel(document, job_id)
        eventually(lambda: rig.job(job_id).state == JobState.CANCELLED)


def test_delete_between_gate_and_publish(rig: Rig, tmp_path: Path) -> None:
    """The trainer has passed its gate and will not be interrupted; its result finds a tombstone."""
    artefact = fake_artefact(tmp_path / "made")
    document, job_id = rig.upload([{"ignore_sigterm": True}, stage("gating", 2, 2), {"wait_for": "go"}, artefact.step()])
    with worker_process(rig.settings):
        rig.reach(job_id, "gating")
        with rig.database.write() as session:
            assert [job.id for job in documents.tombstone(session, "acme", document.document_id)] == [job_id]
        (rig.directory(document, job_id) / "go").touch()
        eventually(lambda: rig.job(job_id).state == JobState.CANCELLED)
        eventually(lambda: not rig.directory(document, job_id).exists())
    assert rig.versions(document) == []
    assert not [path for path in (tmp_path / "modules").rglob("*") if path.is_file()]


def test_a_worker_that_sleeps_through_its_lease_cannot_write(rig: Rig, tmp_path: Path) -> None:
    """Stopped, like a virtual machine that is suspended, past its lease: another worker finishes the job, the sleeper adds nothing."""
    made = fake_artefact(tmp_path / "made")
    document, job_id = rig.upload([stage("fitting"), {"wait_for": "go", "only_attempt": 1}, made.step()])
    with worker_process(rig.settings) as sleeper:
        rig.reach(job_id, "fitting")
        pid = rig.trainer_pid(document, job_id)
        with rig.database.write() as session:  # one that held SQLite's write lock as it was stopped would hold up everybody
            session.connection()  # a session begins with its first use
            os.kill(sleeper.pid, signal.SIGSTOP)
            os.waitid(os.P_PID, sleeper.pid, os.WSTOPPED | os.WNOWAIT)  # the signal returns before it has stopped
        rig.expire_lease(job_id)
        with worker_process(rig.settings):
            eventually(lambda: rig.job(job_id).state == JobState.SUCCEEDED)
            rig.directory(document, job_id).mkdir(parents=True, exist_ok=True)
            os.kill(sleeper.pid, signal.SIGCONT)
            eventually(lambda: not alive(pid))
            assert sleeper.terminate() == 0
    assert (rig.job(job_id).state, rig.job(job_id).attempt, len(rig.versions(document))) == (JobState.SUCCEEDED, 2, 1)
    assert rig.store.path("acme", document.document_id, made.digest).is_dir()


def test_a_reaper_in_the_api_needs_no_worker(rig: Rig) -> None:
    _, job_id = rig.upload([])
    rig.claim()
    rig.expire_lease(job_id)
    reaped: list[jobs.Reaped] = []

    def round_of_the_api() -> bool:
        with rig.database.write() as session:
            reaped.append(jobs.reap_once(session, ring_seconds=rig.settings.ring_seconds))
        return reaped[-1].ring

    eventually(round_of_the_api)
    assert rig.job(job_id).state == JobState.QUEUED
