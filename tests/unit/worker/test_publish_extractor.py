from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError

from server.db import documents, extractors, jobs, material
from server.db.tables import Job, JobKind, JobState
from server.errors import JobLost
from tests.support import rows
from tests.support.rows import expire_lease, publish_module, upload
from tests.support.training_rig import FakeArtefact, Rig, fake_artefact, fake_extractor, make_rig
from worker.events import Result
from worker.publish import publish
from worker.publish_extractor import publish_extractor


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = make_rig(tmp_path / "data", lease_seconds=60)
    yield rig
    rig.close()


def result_of(artefact: FakeArtefact) -> Result:
    proof = {"digest": artefact.digest, "manifest_sha256": artefact.manifest_sha256}
    return Result(artefact="artefact", gate={"passed": True}, composition=artefact.composition, **proof)


def put(rig: Rig, job: Job, artefact: FakeArtefact) -> Job:
    return publish_extractor(rig.database, rig.store, job, artefact.directory, result_of(artefact), wearing=True, max_attempts=3)


def start_of(made: FakeArtefact) -> dict[str, str]:
    return {"lora": made.digest, "composition": str(made.composition)}


def files(rig: Rig) -> list[str]:
    return [path.name for path in (rig.settings.root / "modules").rglob("*") if path.is_file()]


def test_it_is_one_of_its_owners_and_not_active(rig: Rig, tmp_path: Path) -> None:
    job_id = rig.train_extractor([], name="Short answers")
    made = fake_extractor(tmp_path)
    assert put(rig, rig.claim(), made).state == JobState.SUCCEEDED
    [row] = rig.extractors()
    assert (row.owner, row.name, row.job_id, row.active, row.gate) == ("acme", "Short answers", job_id, False, {"passed": True})
    assert (row.lora_digest, row.composition_digest, row.manifest_sha256) == (made.digest, made.composition, made.manifest_sha256)
    assert made.composition is not None
    assert (rig.store.extractor_path("acme", made.composition) / "composition.safetensors").is_file()


def test_the_first_is_active_at_once_if_the_request_said_so_and_no_other(rig: Rig, tmp_path: Path) -> None:
    for seed in (1, 2):
        rig.train_extractor([], activate=True)
        put(rig, rig.claim(), fake_extractor(tmp_path, seed))
    assert [(row.lora_digest, row.active) for row in rig.extractors()] == [
        (fake_extractor(tmp_path, 1).digest, True),
        (fake_extractor(tmp_path, 2).digest, False),
    ]


def test_its_activation_trains_again_what_wears_the_systems(rig: Rig, tmp_path: Path) -> None:
    with rig.database.write() as session:
        rows.extractor(session, "system", "a" * 64)
        publish_module(session, upload(session), wears="a" * 64)
    rig.train_extractor([], activate=True)
    put(rig, rig.claim(), fake_extractor(tmp_path))
    again = rig.claim()
    assert (again.kind, again.params["reason"], again.max_attempts) == (JobKind.TRAIN, "extractor_changed", 3)


def test_one_of_the_systems_is_trained_by_the_tenant_that_asked(rig: Rig, tmp_path: Path) -> None:
    rig.train_extractor([], owner="system", activate=True)
    put(rig, rig.claim(), fake_extractor(tmp_path))
    assert ([row.active for row in rig.extractors("system")], rig.extractors("acme")) == ([True], [])


def test_it_has_learned_from_what_its_start_learned_from(rig: Rig, tmp_path: Path) -> None:
    """Whoever deletes such a document is told of both; what another tenant's learned from is nobody's but its own."""
    with rig.database.write() as session:
        first, second, third = (upload(session) for _ in range(3))
        foreign = upload(session, "globex")
        rows.extractor_training(session, foreign, owner="system")
    shared = fake_extractor(tmp_path, 0)
    put(rig, rig.claim(), shared)
    earlier = fake_extractor(tmp_path, 1, start=start_of(shared))
    later = fake_extractor(tmp_path, 2, start=start_of(earlier))
    for made, documents_ in ((earlier, (first, second)), (later, (second, third))):
        rig.train_extractor([], *documents_)
        put(rig, rig.claim(), made)
    with rig.database.read() as session:
        found = {row.lora_digest: material.revisions(session, "acme", str(row.job_id)) for row in rig.extractors()}
        both = [row.lora_digest for row in material.trained_on(session, "acme", first.document_id)]
    assert found == {
        earlier.digest: {each.document_id: each.revision_id for each in (first, second)},
        later.digest: {each.document_id: each.revision_id for each in (first, second, third)},
    }
    assert both == [earlier.digest, later.digest]


def test_two_compositions_over_one_lora_have_a_directory_each(rig: Rig, tmp_path: Path) -> None:
    for weights in (1, 2):
        rig.train_extractor([])
        put(rig, rig.claim(), fake_extractor(tmp_path, weights=weights))
    first, second = rig.extractors()
    assert first.lora_digest == second.lora_digest
    assert all(rig.store.extractor_path("acme", row.composition_digest).is_dir() for row in (first, second))


def test_a_document_deleted_between_gate_and_publish_leaves_nothing(rig: Rig, tmp_path: Path) -> None:
    with rig.database.write() as session:
        document = upload(session)
    rig.train_extractor([], document)
    job = rig.claim()
    with rig.database.write() as session:
        documents.tombstone(session, "acme", document.document_id)
    assert put(rig, job, fake_extractor(tmp_path)).state == JobState.CANCELLED
    assert (rig.extractors(), files(rig)) == ([], [])


def test_an_old_attempt_publishes_nothing_and_removes_nothing(rig: Rig, tmp_path: Path) -> None:
    job_id = rig.train_extractor([])
    made = fake_extractor(tmp_path)
    old = rig.claim()
    with rig.database.write() as session:
        expire_lease(session, job_id)
        jobs.reap(session)
    new = rig.claim()
    put(rig, new, made)
    with pytest.raises(JobLost):
        put(rig, old, made)
    assert len(rig.extractors()) == 1
    assert len(files(rig)) == 3


def test_a_transaction_that_fails_takes_the_artefact_with_it(rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id = rig.train_extractor([], activate=True)
    job = rig.claim()

    def gone(*_: object) -> Job:
        raise OperationalError("COMMIT", {}, Exception("the server closed the connection"))

    monkeypatch.setattr(jobs, "succeed", gone)
    with pytest.raises(OperationalError):
        put(rig, job, fake_extractor(tmp_path))
    assert (rig.extractors(), files(rig), rig.job(job_id).state) == ([], [], JobState.RUNNING)


def test_what_is_no_extractor_is_refused(rig: Rig, tmp_path: Path) -> None:
    rig.train_extractor([])
    job = rig.claim()
    with pytest.raises(ValueError, match="that of a knowledge_module"):
        put(rig, job, replace(fake_artefact(tmp_path), composition="c" * 64))
    with pytest.raises(ValueError, match="has a composition"):
        put(rig, job, replace(fake_extractor(tmp_path), composition=None))
    document, _ = rig.upload([])
    made = fake_extractor(tmp_path)
    with pytest.raises(ValueError, match="that of a knowledge_extractor"):
        publish(rig.database, rig.store, rig.claim(), made.directory, result_of(made))
    assert (rig.extractors(), rig.versions(document), files(rig)) == ([], [], [])


def test_a_module_whose_extractor_was_deleted_meanwhile_is_trained_again(rig: Rig, tmp_path: Path) -> None:
    """Published, it could answer nothing."""
    document, job_id = rig.upload([])
    job, made = rig.claim(), fake_artefact(tmp_path, wears="a" * 64)
    turned_away = publish(rig.database, rig.store, job, made.directory, result_of(made))
    assert (turned_away.state, (turned_away.error or {})["code"]) == (JobState.QUEUED, "extractor_unavailable")
    assert (rig.versions(document), files(rig)) == ([], [])
    with rig.database.write() as session:
        rows.extractor(session, "system", "a" * 64, active=False)
        assert extractors.stays_servable(session, "globex", "a" * 64)
    rig.skip_wait(job_id)
    assert publish(rig.database, rig.store, rig.claim(), made.directory, result_of(made)).state == JobState.SUCCEEDED


def test_equal_bytes_wait_until_the_deletion_of_the_earlier_ones_is_over(rig: Rig, tmp_path: Path) -> None:
    rig.train_extractor([])
    put(rig, rig.claim(), fake_extractor(tmp_path / "first"))
    [row] = rig.extractors()
    with rig.database.write() as session:
        extractors.tombstone(session, row)
    rig.train_extractor([])
    job = rig.claim()
    with pytest.raises(OSError, match="being deleted"):
        put(rig, job, fake_extractor(tmp_path / "second"))
    with rig.database.write() as session:
        extractors.remove(session, row)
    assert put(rig, job, fake_extractor(tmp_path / "third")).state == JobState.SUCCEEDED
    assert len(files(rig)) > 0
