"""Publishing to an object store: before the transaction, and withdrawn where no row came to name it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.db import documents, jobs
from server.db.tables import Job, JobState
from server.errors import JobLost, ObjectStoreUnavailable
from server.modules.cached_store import CachedStore
from tests.support.object_stores import FaultyObjects, replica
from tests.support.rows import expire_lease
from tests.support.training_rig import FakeArtefact, Rig, fake_artefact, fake_extractor, make_rig
from worker.events import Result
from worker.publish import publish
from worker.publish_extractor import publish_extractor


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = make_rig(tmp_path / "data", lease_seconds=60)
    yield rig
    rig.close()


@pytest.fixture
def objects() -> FaultyObjects:
    return FaultyObjects()


@pytest.fixture
def store(rig: Rig, objects: FaultyObjects) -> CachedStore:
    return replica(rig.settings.root, objects)


def put(rig: Rig, store: CachedStore, job: Job, artefact: FakeArtefact) -> Job:
    proof = {"digest": artefact.digest, "manifest_sha256": artefact.manifest_sha256}
    return publish(rig.database, store, job, artefact.directory, Result(artefact="artefact", gate={"passed": True}, **proof))


def test_a_published_module_is_where_another_machine_finds_it(rig: Rig, store: CachedStore, objects: FaultyObjects, tmp_path: Path) -> None:
    document, _ = rig.upload([])
    artefact = fake_artefact(tmp_path)
    assert put(rig, store, rig.claim(), artefact).state == JobState.SUCCEEDED
    (module,) = rig.versions(document)
    there = replica(tmp_path / "there", objects)
    place = there.path("acme", document.document_id, module.digest)
    with there.kept(place, module.manifest_sha256):
        pass
    assert (place / "adapter_model.safetensors").read_bytes() == (artefact.directory / "adapter_model.safetensors").read_bytes()


def test_what_is_turned_away_is_withdrawn(rig: Rig, store: CachedStore, objects: FaultyObjects, tmp_path: Path) -> None:
    rig.upload([])
    job = rig.claim()
    with rig.database.write() as session:
        jobs.request_cancel(session, job.tenant_id, job.id)
    assert put(rig, store, job, fake_artefact(tmp_path)).state == JobState.CANCELLED
    assert objects.list("") == []


def test_an_attempt_that_lost_its_job_withdraws_its_own_objects_alone(
    rig: Rig, store: CachedStore, objects: FaultyObjects, tmp_path: Path
) -> None:
    """Both have the same tensors; the newer attempt has uploaded, and is not published yet."""
    document, job_id = rig.upload([])
    lost = rig.claim()
    with rig.database.write() as session:
        expire_lease(session, job_id)
        jobs.reap_once(session, ring_seconds=60)
    older, newer = fake_artefact(tmp_path, 1), fake_artefact(tmp_path, 2)
    newer = FakeArtefact(directory=newer.directory, digest=older.digest, manifest_sha256=newer.manifest_sha256)
    store.upload(newer.directory, store.path("acme", document.document_id, newer.digest))
    with pytest.raises(JobLost):
        put(rig, store, lost, older)
    assert {Path(key).parts[5] for key in objects.list("")} == {newer.manifest_sha256}


def test_what_lies_in_place_of_a_deleted_document_does_not_come_back(
    rig: Rig, store: CachedStore, objects: FaultyObjects, tmp_path: Path
) -> None:
    """An earlier attempt's artefact with equal tensors, whose objects another machine deleted."""
    document, _ = rig.upload([])
    job, artefact = rig.claim(), fake_artefact(tmp_path)
    earlier = store.staging("acme", document.document_id)
    (earlier / "manifest.json").write_text("{}")
    store.publish(earlier, "acme", document.document_id, artefact.digest)
    with rig.database.write() as session:
        documents.tombstone(session, "acme", document.document_id)
    assert put(rig, store, job, artefact).state == JobState.CANCELLED
    assert objects.list("") == []


def test_without_the_object_store_nothing_is_published(rig: Rig, store: CachedStore, objects: FaultyObjects, tmp_path: Path) -> None:
    document, _ = rig.upload([])
    objects.down = True
    with pytest.raises(ObjectStoreUnavailable):
        put(rig, store, rig.claim(), fake_artefact(tmp_path))
    assert rig.versions(document) == []
    assert not [path for path in (rig.settings.root / "modules").rglob("*") if path.is_file()]


def test_a_slow_upload_holds_up_no_transaction(rig: Rig, store: CachedStore, objects: FaultyObjects, tmp_path: Path) -> None:
    rig.upload([])
    job = rig.claim()
    uploading, go_on = threading.Event(), threading.Event()
    put_object = objects.put

    def slow(key: str, file: Path) -> None:
        uploading.set()
        assert go_on.wait(10)
        put_object(key, file)

    objects.put = slow  # type: ignore[method-assign]
    publishing = threading.Thread(target=put, args=(rig, store, job, fake_artefact(tmp_path)))
    publishing.start()
    assert uploading.wait(10)
    with rig.database.write() as session:
        jobs.progress(session, job.id, job.attempt, stage="publish", done=1, total=1, unit="steps", eta_seconds=None)
    go_on.set()
    publishing.join(10)
    assert rig.job(job.id).state == JobState.SUCCEEDED


def test_a_job_that_could_not_be_published_is_tried_again(rig: Rig, tmp_path: Path) -> None:
    artefact = fake_artefact(tmp_path)
    _, job_id = rig.upload([artefact.step()])
    blocked = tmp_path / "store"
    supervisor = make_rig(rig.settings.root, object_store=blocked.as_uri(), lease_seconds=60)
    supervisor.database.close()
    rig.settings = supervisor.settings
    worker = rig.supervisor()
    blocked.rmdir()
    blocked.write_text("no directory")
    worker.work()
    job = rig.job(job_id)
    assert (job.state, job.error and job.error["code"]) == (JobState.QUEUED, "object_store_unavailable")


def put_extractor(rig: Rig, store: CachedStore, job: Job, made: FakeArtefact) -> Job:
    proof = {"digest": made.digest, "manifest_sha256": made.manifest_sha256}
    result = Result(artefact="artefact", gate={"passed": True}, composition=made.composition, **proof)
    return publish_extractor(rig.database, store, job, made.directory, result, wearing=True, max_attempts=3)


def test_an_extractor_is_where_another_machine_finds_it(rig: Rig, store: CachedStore, objects: FaultyObjects, tmp_path: Path) -> None:
    rig.train_extractor([])
    assert put_extractor(rig, store, rig.claim(), fake_extractor(tmp_path)).state == JobState.SUCCEEDED
    (row,) = rig.extractors()
    there = replica(tmp_path / "there", objects)
    place = there.extractor_path(row.owner, row.composition_digest)
    with there.kept(place, row.manifest_sha256):
        pass
    assert (place / "composition.safetensors").is_file()


def test_an_extractor_that_is_turned_away_is_withdrawn(rig: Rig, store: CachedStore, objects: FaultyObjects, tmp_path: Path) -> None:
    rig.train_extractor([])
    job = rig.claim()
    with rig.database.write() as session:
        jobs.request_cancel(session, job.tenant_id, job.id)
    assert put_extractor(rig, store, job, fake_extractor(tmp_path)).state == JobState.CANCELLED
    assert objects.list("") == []
