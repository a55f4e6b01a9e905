"""One worker's loop over the fake trainer, in this process."""

from __future__ import annotations

import json
import logging
import os
import signal
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.db import documents, jobs
from server.db.blobs import BlobStore
from server.db.tables import DocumentStatus, JobKind, JobState
from tests.support import rows
from tests.support.rows import expire_lease
from tests.support.training_rig import PATIENCE, Rig, Step, alive, eventually, fake_artefact, make_rig, stage
from worker.workspace import Workspace

HANG: Step = {"wait_for": "never"}
CANARY = "Zitronenfalter"


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = make_rig(tmp_path)
    yield rig
    rig.close()


def error_code(rig: Rig, job_id: str) -> str | None:
    error = rig.job(job_id).error
    return error["code"] if error else None


def test_a_result_is_published(rig: Rig, tmp_path: Path) -> None:
    artefact = fake_artefact(tmp_path)
    document, job_id = rig.upload([stage("fitting", 2, 2), {"say": {"event": "metrics", "metrics": {"loss": 0.5}}}, artefact.step()])
    rig.work()
    job = rig.job(job_id)
    assert (job.state, job.stage, job.metrics, job.error) == (JobState.SUCCEEDED, "fitting", {"loss": 0.5}, None)
    assert job.progress == {"done": 2, "total": 2, "unit": "steps", "eta_seconds": 3.0}
    [module] = rig.versions(document)
    assert (module.version, module.digest, module.job_id, module.gate) == (1, artefact.digest, job_id, {"passed": True})
    assert (rig.document(document).status, rig.document(document).module_id) == (DocumentStatus.READY, module.id)
    assert rig.store.path("acme", document.document_id, artefact.digest).is_dir()
    assert not (rig.settings.root / "work" / "acme").exists()


def test_one_bell_trains_all_that_is_queued(rig: Rig, tmp_path: Path) -> None:
    ids = [rig.upload([fake_artefact(tmp_path, seed).step()])[1] for seed in range(3)]
    rig.work()
    assert [rig.job(job_id).state for job_id in ids] == [JobState.SUCCEEDED] * 3


def test_a_second_bell_finds_nothing(rig: Rig, tmp_path: Path) -> None:
    document, _ = rig.upload([fake_artefact(tmp_path).step()])
    rig.work()
    rig.work()
    assert len(rig.versions(document)) == 1


def test_the_trainer_is_told_what_it_needs(rig: Rig) -> None:
    document, job_id = rig.upload([stage("loading"), HANG], params={"preset": "paper", "recipe": {"rank": 8}, "seed": 7})
    rig.start_work()
    rig.reach(job_id, "loading")
    path = rig.directory(document, job_id) / "spec.json"
    spec = json.loads(path.read_text())
    assert (spec["job_id"], spec["attempt"], spec["preset"], spec["recipe"], spec["seed"]) == (job_id, 1, "paper", {"rank": 8}, 7)
    assert (spec["document_title"], spec["passages"], spec["extractor"]) == ("Leave policy", [], None)
    assert spec["base"] == {"source": rig.settings.base_model, "models_dir": str(rig.settings.root / "models")}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("wears", [False, True])
def test_a_module_is_trained_without_the_active_extractor_unless_the_operator_wants_it(tmp_path: Path, wears: bool) -> None:
    rig = make_rig(tmp_path, modules_wear_extractor=wears)
    with rig.database.write() as session:
        rows.extractor(session, "system", "a" * 64)
    document, job_id = rig.upload([stage("loading"), HANG])
    rig.start_work()
    rig.reach(job_id, "loading")
    worn = json.loads((rig.directory(document, job_id) / "spec.json").read_text())["extractor"]
    assert (worn and worn["digest"]) == ("a" * 64 if wears else None)
    rig.close()


def test_a_generators_address_is_in_the_spec_and_its_key_is_not(tmp_path: Path) -> None:
    generator = {"generator_url": "https://api.example.com/v1", "generator_model": "large", "generator_api_key": "sk-canary"}
    rig = make_rig(tmp_path, **generator)
    document, job_id = rig.upload([{"environment": "KMSERVE_GENERATOR_API_KEY"}, stage("loading"), HANG])
    rig.start_work()
    rig.reach(job_id, "loading")
    written = (rig.directory(document, job_id) / "spec.json").read_text()
    assert json.loads(written)["generator"] == {"url": "https://api.example.com/v1", "model": "large"}
    assert "sk-canary" not in written
    assert (rig.directory(document, job_id) / "KMSERVE_GENERATOR_API_KEY").read_text() == "sk-canary"
    rig.close()


@pytest.mark.parametrize("code", ["generator_unavailable", "generator_refused"])
def test_a_generator_that_fails_is_tried_again_as_long_as_there_are_attempts(rig: Rig, code: str) -> None:
    _, job_id = rig.upload([{"say": {"event": "error", "code": code, "message": "mend it"}}, {"exit": 1}], max_attempts=2)
    rig.work()
    assert (rig.job(job_id).state, rig.job(job_id).attempt, error_code(rig, job_id)) == (JobState.QUEUED, 1, code)
    rig.skip_wait(job_id)
    rig.work()
    assert (rig.job(job_id).state, rig.job(job_id).attempt, error_code(rig, job_id)) == (JobState.FAILED, 2, code)


def test_an_error_that_the_trainer_explains_fails_the_job(rig: Rig) -> None:
    said = {"event": "error", "code": "gate_not_passed", "message": "the module learned too little"}
    document, job_id = rig.upload([{"say": said}, {"exit": 1}])
    rig.work()
    assert (rig.job(job_id).state, rig.job(job_id).attempt) == (JobState.FAILED, 1)
    assert rig.job(job_id).error == {"code": "gate_not_passed", "message": "the module learned too little"}
    assert rig.document(document).status == DocumentStatus.RETRIEVAL_READY
    assert rig.versions(document) == []
    assert not rig.directory(document, job_id).exists()


@pytest.mark.parametrize("end", [{"kill": 9}, {"kill": 11}, {"exit": 1}, {"exit": 3}, {"exit": 0}])
def test_a_crash_is_retried_and_bounded(rig: Rig, end: Step, caplog: pytest.LogCaptureFixture) -> None:
    _, job_id = rig.upload([end], max_attempts=2)
    with caplog.at_level(logging.ERROR):
        rig.work()
        assert (rig.job(job_id).state, rig.job(job_id).attempt) == (JobState.QUEUED, 1), "not again at once"
        rig.skip_wait(job_id)
        rig.work()
    assert (rig.job(job_id).state, rig.job(job_id).attempt, error_code(rig, job_id)) == (JobState.FAILED, 2, "trainer_crashed")
    assert "trainer.log" in caplog.text
    assert "fake trainer" not in str(rig.job(job_id).error)


def test_a_crash_once_does_no_harm(rig: Rig, tmp_path: Path) -> None:
    document, job_id = rig.upload([{"kill": 9, "only_attempt": 1}, fake_artefact(tmp_path).step()])
    rig.work()
    rig.skip_wait(job_id)
    rig.work()
    assert (rig.job(job_id).state, rig.job(job_id).attempt, len(rig.versions(document))) == (JobState.SUCCEEDED, 2, 1)


def test_out_of_memory_is_retried_once_with_half_the_micro_batch(rig: Rig, tmp_path: Path) -> None:
    _, job_id = rig.upload([{"exit": 76, "only_attempt": 1}, fake_artefact(tmp_path).step()], params={"recipe": {"micro_batch": 4}})
    rig.work()
    assert rig.job(job_id).state == JobState.SUCCEEDED
    assert rig.job(job_id).params["recipe"] == {"micro_batch": 2}


def test_out_of_memory_twice_fails(rig: Rig) -> None:
    _, job_id = rig.upload([{"exit": 76}])
    rig.work()
    assert (rig.job(job_id).state, rig.job(job_id).attempt, error_code(rig, job_id)) == (JobState.FAILED, 2, "gpu_out_of_memory")


def test_a_busy_gpu_leaves_the_job_queued_for_later(rig: Rig) -> None:
    _, job_id = rig.upload([{"exit": 77}], max_attempts=1)
    _, other = rig.upload([{"exit": 77}], max_attempts=1)
    rig.work()
    rig.work()
    assert (rig.job(job_id).state, rig.job(other).state) == (JobState.QUEUED, JobState.QUEUED)
    assert rig.job(job_id).attempt + rig.job(other).attempt == 2


@pytest.mark.parametrize("name", ["loading", "synthesising", "teaching", "fitting", "gating"])
def test_cancel_in_every_stage(rig: Rig, name: str) -> None:
    document, job_id = rig.upload([stage(name), HANG])
    rig.start_work()
    rig.reach(job_id, name)
    pid = rig.trainer_pid(document, job_id)
    rig.cancel(document, job_id)
    eventually(lambda: rig.job(job_id).state == JobState.CANCELLED)
    assert not alive(pid)
    eventually(lambda: not rig.directory(document, job_id).exists())
    assert rig.document(document).status == DocumentStatus.RETRIEVAL_READY


def test_cancel_of_a_trainer_that_will_not_listen(rig: Rig) -> None:
    document, job_id = rig.upload([{"ignore_sigterm": True}, stage("fitting"), HANG])
    rig.start_work(grace_seconds=0.3)
    rig.reach(job_id, "fitting")
    rig.cancel(document, job_id)
    eventually(lambda: rig.job(job_id).state == JobState.CANCELLED)


def test_a_result_that_comes_after_the_cancel_is_not_published(rig: Rig, tmp_path: Path) -> None:
    artefact = fake_artefact(tmp_path)
    document, job_id = rig.upload([{"ignore_sigterm": True}, stage("gating"), {"wait_for": "go"}, artefact.step()])
    rig.start_work()
    rig.reach(job_id, "gating")
    rig.cancel(document, job_id)
    (rig.directory(document, job_id) / "go").touch()
    eventually(lambda: rig.job(job_id).state == JobState.CANCELLED)
    assert rig.versions(document) == []
    assert not rig.store.path("acme", document.document_id, artefact.digest).exists()


def test_delete_while_training_stops_the_trainer(rig: Rig) -> None:
    document, job_id = rig.upload([stage("fitting"), HANG])
    rig.start_work()
    rig.reach(job_id, "fitting")
    pid = rig.trainer_pid(document, job_id)
    with rig.database.write() as session:
        documents.tombstone(session, "acme", document.document_id)
    eventually(lambda: rig.job(job_id).state == JobState.CANCELLED)
    assert not alive(pid)
    eventually(lambda: not rig.directory(document, job_id).exists())


def test_delete_before_the_trainer_starts(rig: Rig) -> None:
    document, job_id = rig.upload([HANG])
    job = rig.claim()
    with rig.database.write() as session:
        documents.tombstone(session, "acme", document.document_id)
    assert rig.supervisor().train(job) is None
    assert rig.job(job_id).state == JobState.CANCELLED


def test_shutdown_checkpoints_and_queues_again(rig: Rig) -> None:
    document, job_id = rig.upload([stage("fitting"), HANG], max_attempts=1)
    thread = rig.start_work()
    rig.reach(job_id, "fitting")
    rig.stopping.set()
    thread.join(PATIENCE)
    assert (rig.job(job_id).state, rig.job(job_id).lease_owner) == (JobState.QUEUED, None)
    assert (rig.directory(document, job_id) / "attempt-1" / "checkpoint").exists()


def test_a_stolen_lease_kills_the_trainer_and_writes_nothing(rig: Rig) -> None:
    """Another worker reaped and claimed the job: the first trainer is killed, and the row is the second's alone."""
    document, job_id = rig.upload([stage("fitting"), HANG])
    thread = rig.start_work()
    rig.reach(job_id, "fitting")
    pid = rig.trainer_pid(document, job_id)
    steal(rig, job_id)
    eventually(lambda: not alive(pid))
    thread.join(PATIENCE)
    job = rig.job(job_id)
    assert (job.state, job.attempt, job.lease_owner, job.stage) == (JobState.RUNNING, 2, "thief", None)
    assert rig.directory(document, job_id).exists()


def steal(rig: Rig, job_id: str) -> None:
    with rig.database.write() as session:
        expire_lease(session, job_id)
        jobs.reap(session)
        stolen = jobs.claim(session, JobKind.TRAIN, "thief", 60.0)
    assert stolen is not None


def test_noise_on_the_output_is_ignored(rig: Rig, tmp_path: Path) -> None:
    noise: list[Step] = [{"print": text} for text in ("hello", "[1]", '{"event": "other"}', '{"event": "progress"}', "{")]
    _, job_id = rig.upload([*noise, fake_artefact(tmp_path).step()])
    rig.work()
    assert rig.job(job_id).state == JobState.SUCCEEDED


@pytest.mark.parametrize("changes", [{"artefact": "../../.."}, {"artefact": "nothing"}, {"manifest_sha256": "0" * 64}])
def test_a_result_that_is_not_what_it_says_is_not_published(rig: Rig, tmp_path: Path, changes: dict[str, str]) -> None:
    document, job_id = rig.upload([fake_artefact(tmp_path).step(**changes)], max_attempts=1)
    rig.work()
    assert (rig.job(job_id).state, error_code(rig, job_id), rig.versions(document)) == (JobState.FAILED, "job_failed", [])


def test_a_document_without_its_text_fails_with_what_to_do(rig: Rig) -> None:
    document, job_id = rig.upload([HANG], max_attempts=1)
    BlobStore(rig.settings.root / "blobs").delete_prefix(f"acme/{document.document_id}")
    rig.work()
    assert (rig.job(job_id).state, error_code(rig, job_id)) == (JobState.FAILED, "document_text_missing")


def test_a_disk_that_takes_nothing_fails_the_attempt_not_the_worker(rig: Rig) -> None:
    _, job_id = rig.upload([HANG], max_attempts=1)
    (rig.settings.root / "work").write_text("a file where the directory should be")
    rig.work()
    assert (rig.job(job_id).state, error_code(rig, job_id)) == (JobState.FAILED, "job_failed")


def test_a_trainer_that_dies_over_a_document_puts_none_of_it_in_the_log(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    _, job_id = rig.upload(
        [{"print": f"generated {CANARY}"}, {"raise": f"cannot train on {CANARY}\n{CANARY}Error: really"}], max_attempts=1
    )
    with caplog.at_level(logging.DEBUG):
        rig.work()
    assert error_code(rig, job_id) == "trainer_crashed"
    assert 'fake_trainer.py", line' in caplog.text
    assert "ValueError" in caplog.text
    assert "it is no event" in caplog.text
    assert CANARY not in caplog.text
    assert CANARY not in str(rig.job(job_id).error)


def test_an_attempt_that_fails_over_a_document_puts_none_of_it_in_the_log(
    rig: Rig, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ValueError(f"cannot write {CANARY}")

    _, job_id = rig.upload([HANG], max_attempts=1)
    monkeypatch.setattr(Workspace, "prepare", broken)
    with caplog.at_level(logging.DEBUG):
        rig.work()
    assert error_code(rig, job_id) == "job_failed"
    assert 'test_supervisor.py", line' in caplog.text
    assert CANARY not in caplog.text


def test_a_trainer_killed_from_outside_is_a_crash(rig: Rig) -> None:
    document, job_id = rig.upload([stage("fitting"), HANG], max_attempts=1)
    thread = rig.start_work()
    rig.reach(job_id, "fitting")
    os.kill(rig.trainer_pid(document, job_id), signal.SIGKILL)
    thread.join(PATIENCE)
    assert (rig.job(job_id).state, error_code(rig, job_id)) == (JobState.FAILED, "trainer_crashed")
