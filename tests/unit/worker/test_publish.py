from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError

from server.db import documents, jobs, modules
from server.db.tables import DocumentStatus, Job, JobKind, JobState
from server.errors import JobLost
from server.modules.store import ModuleStore
from tests.support.rows import Uploaded, add_revision, expire_lease
from tests.support.training_rig import FakeArtefact, Rig, fake_artefact, make_rig
from worker.events import Result
from worker.publish import publish


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = make_rig(tmp_path / "data", lease_seconds=60)
    yield rig
    rig.close()


def put(rig: Rig, job: Job, artefact: FakeArtefact, store: ModuleStore | None = None) -> Job:
    proof = {"digest": artefact.digest, "manifest_sha256": artefact.manifest_sha256}
    return publish(rig.database, store or rig.store, job, artefact.directory, Result(artefact="artefact", gate={"passed": True}, **proof))


def files(rig: Rig) -> list[str]:
    return [path.name for path in (rig.settings.root / "modules").rglob("*") if path.is_file()]


def train_again(rig: Rig, document: Uploaded) -> Job:
    with rig.database.write() as session:
        jobs.enqueue(session, **vars(document), kind=JobKind.TRAIN, params={})
    return rig.claim()


def test_versions_count_up_and_old_ones_stay(rig: Rig, tmp_path: Path) -> None:
    document, _ = rig.upload([])
    first = put(rig, rig.claim(), fake_artefact(tmp_path, 1))
    second = put(rig, train_again(rig, document), fake_artefact(tmp_path, 2))
    assert (first.state, second.state) == (JobState.SUCCEEDED, JobState.SUCCEEDED)
    newest, oldest = rig.versions(document)
    assert (newest.version, oldest.version, rig.document(document).module_id) == (2, 1, newest.id)
    assert all(rig.store.path("acme", document.document_id, module.digest).is_dir() for module in (newest, oldest))


def test_the_row_says_what_lies_there_when_the_digest_comes_twice(rig: Rig, tmp_path: Path) -> None:
    """Equal tensors, another manifest: the first directory stays, and the new version's row must match it."""
    document, _ = rig.upload([])
    first, again = fake_artefact(tmp_path, 1), fake_artefact(tmp_path, 2)
    again = FakeArtefact(directory=again.directory, digest=first.digest, manifest_sha256=again.manifest_sha256)
    put(rig, rig.claim(), first)
    put(rig, train_again(rig, document), again)
    assert [(module.version, module.digest, module.manifest_sha256) for module in rig.versions(document)] == [
        (2, first.digest, first.manifest_sha256),
        (1, first.digest, first.manifest_sha256),
    ]


def test_a_delete_between_gate_and_publish_leaves_nothing(rig: Rig, tmp_path: Path) -> None:
    document, job_id = rig.upload([])
    job = rig.claim()
    with rig.database.write() as session:
        documents.tombstone(session, "acme", document.document_id)
    rig.store.delete_document("acme", document.document_id)
    assert put(rig, job, fake_artefact(tmp_path)).state == JobState.CANCELLED
    assert (rig.versions(document), files(rig), rig.job(job_id).state) == ([], [], JobState.CANCELLED)
    assert not rig.store.path("acme", document.document_id, "0" * 64).parent.exists()


def test_a_cancel_between_gate_and_publish_leaves_nothing(rig: Rig, tmp_path: Path) -> None:
    document, job_id = rig.upload([])
    job = rig.claim()
    rig.cancel(document, job_id)
    assert put(rig, job, fake_artefact(tmp_path)).state == JobState.CANCELLED
    assert (rig.versions(document), files(rig), rig.document(document).status) == ([], [], DocumentStatus.RETRIEVAL_READY)


def test_an_old_attempt_publishes_nothing_and_removes_nothing(rig: Rig, tmp_path: Path) -> None:
    """Both attempts made the same bytes: the loser's cleaning up must not take the winner's artefact with it."""
    document, job_id = rig.upload([])
    artefact = fake_artefact(tmp_path)
    old = rig.claim()
    with rig.database.write() as session:
        expire_lease(session, job_id)
        jobs.reap(session)
    new = rig.claim()
    with pytest.raises(JobLost):
        put(rig, old, artefact)
    assert (rig.versions(document), files(rig)) == ([], [])
    put(rig, new, artefact)
    with pytest.raises(JobLost):
        put(rig, old, artefact)
    assert len(rig.versions(document)) == 1
    assert rig.store.path("acme", document.document_id, artefact.digest).is_dir()


def test_a_module_of_an_older_revision_does_not_replace_a_newer_one(rig: Rig, tmp_path: Path) -> None:
    document, _ = rig.upload([])
    old = rig.claim()
    with rig.database.write() as session:
        add_revision(session, "acme", document.document_id, "rev_2", 2)
        newer = Uploaded(tenant_id="acme", document_id=document.document_id, revision_id="rev_2")
    put(rig, train_again(rig, newer), fake_artefact(tmp_path, 2))
    ended = put(rig, old, fake_artefact(tmp_path, 1))
    assert (ended.state, (ended.error or {})["code"]) == (JobState.FAILED, "superseded")
    [module] = rig.versions(document)
    assert (module.revision_id, rig.document(document).module_id, rig.document(document).status) == ("rev_2", module.id, "ready")
    assert len(files(rig)) == 2


def test_a_revision_still_being_read_does_not_become_ready(rig: Rig, tmp_path: Path) -> None:
    """The module is of the revision before: it answers, but the document's status is about the new one."""
    document, _ = rig.upload([])
    job = rig.claim()
    with rig.database.write() as session:
        add_revision(session, "acme", document.document_id, "rev_2", 2)
        documents.set_status(session, document.document_id, "acme", DocumentStatus.INGESTING)
    assert put(rig, job, fake_artefact(tmp_path)).state == JobState.SUCCEEDED
    assert (rig.document(document).status, rig.document(document).module_id) == ("ingesting", rig.versions(document)[0].id)


def test_a_transaction_that_fails_takes_the_artefact_with_it(rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document, job_id = rig.upload([])
    job = rig.claim()

    def gone(*_: object) -> Job:
        raise OperationalError("COMMIT", {}, Exception("the server closed the connection"))

    monkeypatch.setattr(jobs, "succeed", gone)
    with pytest.raises(OperationalError):
        put(rig, job, fake_artefact(tmp_path))
    assert (rig.versions(document), files(rig), rig.job(job_id).state) == ([], [], JobState.RUNNING)


def test_a_manifest_that_is_not_the_announced_one_is_refused(rig: Rig, tmp_path: Path) -> None:
    document, _ = rig.upload([])
    artefact = fake_artefact(tmp_path)
    (artefact.directory / "manifest.json").write_text("{}")
    with pytest.raises(ValueError, match="not the one that passed the gate"):
        put(rig, rig.claim(), artefact)
    assert (rig.versions(document), files(rig)) == ([], [])


def test_a_full_disk_while_staging_leaves_nothing(rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document, _ = rig.upload([])
    job = rig.claim()

    def full(source: Path, target: Path, **_: object) -> None:
        (target / "adapter_model.safetensors").write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copytree", full)
    with pytest.raises(OSError, match="No space"):
        put(rig, job, fake_artefact(tmp_path))
    assert (rig.versions(document), files(rig)) == ([], [])


def test_two_at_once_of_one_attempt_publish_once(rig: Rig, tmp_path: Path) -> None:
    document, _ = rig.upload([])
    job, artefact = rig.claim(), fake_artefact(tmp_path)
    lost: list[bool] = []

    def race() -> None:
        try:
            put(rig, job, artefact)
        except JobLost:
            lost.append(True)

    threads = [threading.Thread(target=race) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert (len(rig.versions(document)), len(lost)) == (1, 2)
    assert rig.store.path("acme", document.document_id, artefact.digest).is_dir()


def test_a_new_version_replaces_a_quarantined_one(rig: Rig, tmp_path: Path) -> None:
    document, _ = rig.upload([])
    put(rig, rig.claim(), fake_artefact(tmp_path, 1))
    with rig.database.write() as session:
        modules.quarantine(session, "acme", rig.versions(document)[0].id, "digest differs")
    put(rig, train_again(rig, document), fake_artefact(tmp_path, 1))
    with rig.database.read() as session:
        active = modules.active(session, "acme", document.document_id)
    assert active is not None
    assert (active.version, active.state) == (2, "published")
