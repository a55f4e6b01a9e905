"""The real trainer as a process of its own, with a tiny base model: its events, its exit codes, and what it survives."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.db.blobs import BlobStore
from server.db.tables import DocumentStatus, JobState
from tests.support.real_trainer import MACHINE, PATIENCE, RECIPE, TEXT, loaded, real_trainer, tiny_base_on_disk, validated, write_spec
from tests.support.training_rig import Rig, make_rig
from worker.events import ExitCode
from worker.supervisor import TRAINER

ENDLESS = {**RECIPE, "max_steps": 100_000, "evaluate_every": 50_000}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base_on_disk(tmp_path_factory.mktemp("model"))


@pytest.fixture
def job(tmp_path: Path) -> Path:
    return tmp_path / "job"


@pytest.fixture
def rig(tmp_path: Path, base: Path) -> Iterator[Rig]:
    rig = make_rig(tmp_path / "data", lease_seconds=60, base_model=str(base), **MACHINE)
    yield rig
    rig.close()


def test_sigterm_writes_a_checkpoint_and_the_next_attempt_resumes_to_a_result(job: Path, base: Path) -> None:
    write_spec(job, base)
    with real_trainer(job) as first:
        first.until("fitting", 4)
        first.process.send_signal(signal.SIGTERM)
        assert first.end() == ExitCode.CHECKPOINTED
    stopped = first.steps("fitting")[-1]
    assert stopped < RECIPE["max_steps"]
    assert (first.events("result"), first.events("error")) == ([], [])
    assert (job / "checkpoint" / "state.json").exists()
    written = (job / "synthesis.jsonl").read_text().split()

    write_spec(job, base, attempt=2)
    with real_trainer(job) as second:
        assert second.end() == ExitCode.RESULT
    assert second.steps("fitting") == list(range(stopped + 1, RECIPE["max_steps"] + 1))
    assert second.steps("teaching") == []
    assert (job / "synthesis.jsonl").read_text().split() == written, "nothing was generated again"
    estimates = [event["eta_seconds"] for event in second.events("progress")]
    assert estimates[0] is None
    assert estimates[-1] == 0
    [result] = second.events("result")
    assert result["artefact"] == "attempt-2/artefact"
    model = loaded(base, job.parent / "models")
    artefact = validated(model, job / result["artefact"], result["digest"], result["manifest_sha256"])
    assert artefact.manifest.gate == result["gate"]
    assert result["gate"]["passed"] is True
    assert [event["metrics"] for event in second.events("metrics")] == [{"gate": result["gate"]}]


def test_it_ends_with_its_parent(job: Path, base: Path) -> None:
    write_spec(job, base, recipe=ENDLESS)
    with real_trainer(job) as trainer:
        trainer.until("fitting", 2)
        trainer.close_stdin()
        assert trainer.process.wait(PATIENCE) == 1
    assert (trainer.events("result"), trainer.events("error")) == ([], [])


def test_a_gate_that_does_not_pass_is_explained_with_its_figures(job: Path, base: Path) -> None:
    write_spec(job, base, recipe={**RECIPE, "max_steps": 4, "gate_improvement": 0.99})
    with real_trainer(job) as trainer:
        assert trainer.end() == ExitCode.FAILED
    [error] = trainer.events("error")
    assert error["code"] == "gate_not_passed"
    [told] = trainer.events("metrics")
    assert (told["metrics"]["gate"]["passed"], told["metrics"]["gate"]["required"]) == (False, 0.99)
    assert told["metrics"]["gate"]["improvement"] < 0.99
    assert trainer.events("result") == []


def test_an_unknown_preset_is_an_error_that_its_owner_can_read(job: Path, base: Path) -> None:
    write_spec(job, base, preset="fast")
    with real_trainer(job) as trainer:
        assert trainer.end() == ExitCode.FAILED
    [error] = trainer.events("error")
    assert error["code"] == "invalid_input"
    assert "'fast'" in error["message"]
    assert "paper, quick" in error["message"]


def test_the_real_supervisor_publishes_what_the_real_trainer_made(rig: Rig, base: Path) -> None:
    document, job_id = rig.upload([], params={"preset": "quick", "recipe": RECIPE})
    blob = f"{document.tenant_id}/{document.document_id}/{document.revision_id}.txt"
    BlobStore(rig.settings.root / "blobs").write_text(blob, TEXT)
    rig.work(command=TRAINER)
    job = rig.job(job_id)
    assert (job.state, job.error, job.attempt) == (JobState.SUCCEEDED, None, 1)
    [module] = rig.versions(document)
    assert (rig.document(document).status, rig.document(document).module_id) == (DocumentStatus.READY, module.id)
    assert job.metrics["gate"] == module.gate
    assert module.gate["passed"] is True
    model = loaded(base, rig.settings.root / "models")
    place = rig.store.path(document.tenant_id, document.document_id, module.digest)
    assert validated(model, place, module.digest, module.manifest_sha256).manifest.document_revision is not None
    assert module.base_fingerprint == model.fingerprint
    assert not rig.directory(document, job_id).exists()
