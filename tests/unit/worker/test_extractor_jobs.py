"""The worker's loop over jobs of extractors, with the fake trainer; what it has in common with modules is in test_supervisor.py."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import insert

from server.db import modules
from server.db.tables import JobState, Passage
from tests.support import rows
from tests.support.rows import add_revision, publish_module, upload
from tests.support.training_rig import Rig, Step, eventually, fake_artefact, fake_extractor, make_rig, stage

HANG: Step = {"wait_for": "never"}


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = make_rig(tmp_path)
    yield rig
    rig.close()


def test_a_result_is_published(rig: Rig, tmp_path: Path) -> None:
    made = fake_extractor(tmp_path)
    job_id = rig.train_extractor([stage("fitting", 2, 2), {"say": {"event": "metrics", "metrics": {"loss": 0.5}}}, made.step()])
    rig.work()
    job = rig.job(job_id)
    assert (job.state, job.stage, job.metrics, job.error) == (JobState.SUCCEEDED, "fitting", {"loss": 0.5}, None)
    assert [(row.composition_digest, row.active) for row in rig.extractors()] == [(made.composition, False)]
    assert not (rig.settings.root / "work" / "acme").exists()


def test_one_bell_trains_extractors_and_modules(rig: Rig, tmp_path: Path) -> None:
    jobs = [rig.upload([fake_artefact(tmp_path).step()])[1], rig.train_extractor([fake_extractor(tmp_path).step()])]
    rig.work()
    assert [rig.job(job_id).state for job_id in jobs] == [JobState.SUCCEEDED] * 2


def test_the_trainer_is_told_what_it_needs(rig: Rig) -> None:
    with rig.database.write() as session:
        first, second = sorted((upload(session), upload(session)), key=lambda document: document.document_id)
        module = publish_module(session, second, wears="a" * 64)
        where = {"id": "p1", "ordinal": 0, "char_start": 0, "char_end": 2, "tokens": 1}
        session.execute(insert(Passage).values(**vars(second), **where, text="31 days", page=1))
        rows.extractor(session, "system", "a" * 64)
    job_id = rig.train_extractor([stage("loading"), HANG], first, second, recipe={"rank": 8}, seed=7)
    rig.start_work()
    rig.reach(job_id, "loading")
    path = rig.directory(None, job_id) / "spec.json"
    spec = json.loads(path.read_text())
    assert (spec["kind"], spec["job_id"], spec["attempt"], spec["owner"]) == ("extractor", job_id, 1, "acme")
    assert (spec["recipe"], spec["seed"], spec["start"], spec["extractor"]["digest"]) == ({"rank": 8}, 7, None, "a" * 64)
    assert spec["base"] == {"source": rig.settings.base_model, "models_dir": str(rig.settings.root / "models")}
    told = {document["document_id"]: document for document in spec["documents"]}
    assert told[first.document_id]["module"] is None
    assert "text" not in told[first.document_id], "passages are what is read of a document"
    assert told[second.document_id]["passages"] == ["31 days"]
    assert told[second.document_id]["module"] == {
        "digest": module.digest,
        "manifest_sha256": "e" * 64,
        "directory": str(rig.store.path("acme", second.document_id, module.digest)),
        "scope": "all",
        "wears": "a" * 64,
    }
    asked = {"question": "How many days?", "answers": ["31"]}
    assert spec["questions"] == [{"document_id": document.document_id, **asked} for document in (first, second)]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_the_systems_is_not_trained_beside_a_tenants(rig: Rig) -> None:
    """What the operator's own extractor learned is private to the operator."""
    with rig.database.write() as session:
        upload(session)
        rows.extractor(session, "acme", "a" * 64)
    job_id = rig.train_extractor([stage("loading"), HANG], owner="system")
    rig.start_work()
    rig.reach(job_id, "loading")
    assert json.loads((rig.directory(None, job_id) / "spec.json").read_text())["extractor"] is None


@pytest.mark.parametrize("start", ["active", "nothing"])
def test_the_trainer_is_told_what_to_start_from(rig: Rig, start: str) -> None:
    """Of one that is not started from it needs no files."""
    with rig.database.write() as session:
        rows.extractor(session, "system", "a" * 64)
        rows.extractor(session, "acme", "b" * 64)
    job_id = rig.train_extractor([stage("loading"), HANG], start=start)
    rig.start_work()
    rig.reach(job_id, "loading")
    spec = json.loads((rig.directory(None, job_id) / "spec.json").read_text())
    assert spec["start"] == start
    assert (spec["extractor"] and spec["extractor"]["digest"]) == ("b" * 64 if start == "active" else None), "the tenant's own comes first"


def test_a_module_of_another_text_or_in_quarantine_is_not_learned_over(rig: Rig) -> None:
    with rig.database.write() as session:
        older, damaged = upload(session), upload(session)
        publish_module(session, older, wears=None)
        modules.quarantine(session, "acme", publish_module(session, damaged, wears=None).id, "digest differs")
        add_revision(session, "acme", older.document_id, "rev_2", 2)
    newer = rows.Uploaded(tenant_id="acme", document_id=older.document_id, revision_id="rev_2")
    job_id = rig.train_extractor([stage("loading"), HANG], newer, damaged)
    rig.start_work()
    rig.reach(job_id, "loading")
    spec = json.loads((rig.directory(None, job_id) / "spec.json").read_text())
    assert [document["module"] for document in spec["documents"]] == [None, None]


def test_an_error_that_the_trainer_explains_fails_the_job(rig: Rig) -> None:
    said = {"event": "error", "code": "gate_not_passed", "message": "the extractor learned too little"}
    job_id = rig.train_extractor([{"say": said}, {"exit": 1}])
    rig.work()
    assert (rig.job(job_id).state, (rig.job(job_id).error or {})["code"]) == (JobState.FAILED, "gate_not_passed")
    assert (rig.extractors(), rig.directory(None, job_id).exists()) == ([], False)


def test_a_crash_is_retried(rig: Rig, tmp_path: Path) -> None:
    job_id = rig.train_extractor([{"kill": 9, "only_attempt": 1}, fake_extractor(tmp_path).step()])
    rig.work()
    rig.skip_wait(job_id)
    rig.work()
    assert (rig.job(job_id).state, rig.job(job_id).attempt, len(rig.extractors())) == (JobState.SUCCEEDED, 2, 1)


def test_out_of_memory_is_retried_once_with_half_the_micro_batch(rig: Rig, tmp_path: Path) -> None:
    job_id = rig.train_extractor([{"exit": 76, "only_attempt": 1}, fake_extractor(tmp_path).step()], recipe={"weights_rate": 0.1})
    rig.work()
    assert rig.job(job_id).state == JobState.SUCCEEDED
    assert rig.job(job_id).params["recipe"] == {"weights_rate": 0.1, "micro_batch": 4}


def test_a_cancel_stops_it(rig: Rig) -> None:
    job_id = rig.train_extractor([stage("fitting"), HANG])
    rig.start_work()
    rig.reach(job_id, "fitting")
    rig.cancel(None, job_id)
    eventually(lambda: rig.job(job_id).state == JobState.CANCELLED)
    eventually(lambda: not rig.directory(None, job_id).exists())


def test_a_result_without_a_composition_is_none(rig: Rig, tmp_path: Path) -> None:
    made = fake_extractor(tmp_path)
    job_id = rig.train_extractor([made.step(composition=None)])
    rig.work()
    assert (rig.job(job_id).state, (rig.job(job_id).error or {})["code"], rig.extractors()) == (JobState.QUEUED, "job_failed", [])
