"""Cancel, retry and delete."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from server.background import housework
from server.db import jobs
from server.db.tables import Audit, Document, ExtractorDocument, ExtractorQuestion, Job, JobKind, JobState, Module, Passage, Revision
from server.errors import IndexUnavailable, Starting
from server.jobs import ingest_records
from server.parts import Loading
from server.transactions import writing
from tests.support.api import ACME, Api, document_row
from tests.support.extracting import indexed, published, question

TABLES = (Document, Revision, Passage, Module, Job)


async def counts(api: Api) -> list[int]:
    return list(await api.sql(lambda session: [session.scalar(select(func.count()).select_from(table)) for table in TABLES]))


async def claimed(api: Api, kind: JobKind) -> Job:
    job = await writing(api.parts.database, jobs.claim, kind, "test", 60.0)
    assert job is not None
    return job


def files(api: Api, tenant: str = ACME) -> list[Path]:
    root = api.parts.settings.root
    return [path for path in root.rglob(f"*{tenant}*/**/*") if path.is_file()]


async def test_a_queued_ingest_is_cancelled_at_once_and_can_be_retried(api: Api) -> None:
    document = await api.uploaded()
    cancelled = await api.client.post(f"/documents/{document['id']}/cancel")
    assert (cancelled.status_code, cancelled.json()["status"], cancelled.json()["job"]["state"]) == (200, "cancelled", "cancelled")
    retried = (await api.client.post(f"/documents/{document['id']}/retry")).json()
    assert (retried["status"], retried["job"]["kind"], retried["job"]["state"]) == ("ingesting", "ingest", "queued")


async def test_a_running_training_is_asked_to_stop(api: Api) -> None:
    document = await api.uploaded()
    await api.index(document["id"], ["Staff get 31 days."])
    job = await claimed(api, JobKind.TRAIN)
    shown = (await api.client.post(f"/documents/{document['id']}/cancel")).json()
    assert (shown["status"], shown["job"]["cancel_requested"]) == ("training", True)
    await writing(api.parts.database, jobs.cancelled, job.id, job.attempt)
    settled = (await api.client.get(f"/documents/{document['id']}")).json()
    assert (settled["status"], settled["job"]["state"]) == ("retrieval_ready", "cancelled")


async def test_a_failed_training_is_retried_and_rung_for(api: Api) -> None:
    document = await api.uploaded(preset="paper")
    await api.index(document["id"], ["Staff get 31 days."])
    await api.fail(JobKind.TRAIN, "gate_not_passed")
    before = api.ring.calls
    retried = (await api.client.post(f"/documents/{document['id']}/retry")).json()
    await api.parts.tasks.finish()
    assert (retried["status"], retried["job"]["kind"], retried["job"]["state"]) == ("training", "train", "queued")
    assert api.ring.calls == before + 1
    job = await claimed(api, JobKind.TRAIN)
    assert job.params == {"preset": "paper"}


async def test_a_settled_document_has_nothing_to_cancel_and_nothing_to_retry(api: Api) -> None:
    document = await api.uploaded(train="never")
    await api.index(document["id"], ["Staff get 31 days."])
    path = f"/documents/{document['id']}"
    assert (await api.client.post(f"{path}/cancel")).json()["code"] == "not_cancellable"
    assert (await api.client.post(f"{path}/retry")).json()["code"] == "not_retryable"


async def test_what_is_under_way_is_not_retried(api: Api) -> None:
    document = await api.uploaded()
    refused = await api.client.post(f"/documents/{document['id']}/retry")
    assert (refused.status_code, refused.json()["code"]) == (409, "not_retryable")


async def test_nothing_of_a_deleted_document_is_left(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    document = await api.uploaded("Staff get 31 days.", title="Leave policy")
    await api.index(document["id"], ["Staff get", "31 days."])
    digest = await api.train(document["id"])
    module = api.parts.modules.path(ACME, document["id"], digest)
    module.mkdir(parents=True)
    (module / "adapter_model.safetensors").write_bytes(b"weights")
    left = api.parts.settings.root / "work" / ACME / document["id"] / "job_1"
    left.mkdir(parents=True)
    (left / "spec.json").write_text("{}")
    assert len(files(api)) == 4

    receipt = (await api.client.delete(f"/documents/{document['id']}")).json()

    assert receipt["complete"]
    assert [record.getMessage() for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")] == []
    assert receipt["removed"] == {"passages": 2, "revisions": 1, "modules": [digest], "jobs": 2}
    assert files(api) == []
    assert api.index_fake.entries == []
    assert [(path, error.code) for path, error in api.engine.evicted] == [(module, "document_not_found")]
    assert await counts(api) == [0, 0, 0, 0, 0]
    audits = await api.sql(
        lambda session: [(row.action, row.document_id) for row in session.scalars(select(Audit).order_by(Audit.created_at))]
    )
    assert audits == [("upload", document["id"]), ("delete", document["id"])]


@pytest.mark.parametrize("path", ["", "/events", "/cancel", "/retry"])
async def test_a_deleted_document_is_not_found(api: Api, path: str) -> None:
    document = await api.uploaded()
    job_id = document["job"]["id"]
    await api.client.delete(f"/documents/{document['id']}")
    method = "POST" if path in ("/cancel", "/retry") else "GET"
    response = await api.client.request(method, f"/documents/{document['id']}{path}")
    assert (response.status_code, response.json()["code"]) == (404, "document_not_found")
    assert (await api.client.delete(f"/documents/{document['id']}")).json()["code"] == "document_not_found"
    assert (await api.client.get(f"/jobs/{job_id}")).json()["code"] == "job_not_found"


async def test_the_receipt_names_extractors_that_were_trained_on_the_document(api: Api) -> None:
    operator = await api.client_with("admin", tenant="default")
    document, other = [await indexed(api, text, tenant="default", client=operator) for text in ("One.", "Two.")]
    made = []
    for owner, name in (("default", "Ours"), ("system", "Everybody's")):
        body = {"questions": [question(document), question(other)], "owner": owner, "name": name}
        job = (await operator.post("/extractors", json=body)).json()
        made.append(await published(api, name[0], owner=owner, name=name, active=owner == "system", job_id=job["id"]))
        await writing(api.parts.database, jobs.claim, JobKind.EXTRACTOR, "test", 60.0)
        await writing(api.parts.database, jobs.succeed, job["id"], 1)
    receipt = (await operator.delete(f"/documents/{document}")).json()
    assert receipt["complete"]
    assert receipt["extractors"] == [
        {"id": made[0], "owner": "default", "name": "Ours", "active": False},
        {"id": made[1], "owner": "system", "name": "Everybody's", "active": True},
    ]
    shown = (await operator.get(f"/extractors/{made[0]}")).json()
    assert {each["document_id"] for each in shown["documents"]} == {document, other}, "it was trained on it all the same"


async def test_deleting_a_document_stops_the_training_of_an_extractor_on_it(api: Api) -> None:
    document = await indexed(api)
    started, waiting = [(await api.client.post("/extractors", json={"questions": [question(document)]})).json()["id"] for _ in range(2)]
    await writing(api.parts.database, jobs.claim, JobKind.EXTRACTOR, "test", 60.0)
    left = api.parts.settings.root / "work" / ACME / "extractors" / started
    left.mkdir(parents=True)
    (left / "spec.json").write_text("the document's text")
    receipt = (await api.client.delete(f"/documents/{document}")).json()
    assert (receipt["complete"], receipt["extractors"]) == (False, [])
    assert await writing(api.parts.database, jobs.heartbeat, started, 1, 60.0), "the worker is told to stop"
    assert (await api.client.get(f"/jobs/{waiting}")).json()["state"] == "cancelled"
    await writing(api.parts.database, jobs.cancelled, started, 1)
    await housework(api.parts)
    assert files(api) == []
    gone = (*TABLES[:-1], ExtractorDocument, ExtractorQuestion)
    assert await api.sql(lambda session: [session.scalars(select(table)).all() for table in gone]) == [[]] * len(gone)


async def test_the_bytes_of_a_deleted_document_can_be_uploaded_again(api: Api) -> None:
    first = await api.uploaded()
    await api.client.delete(f"/documents/{first['id']}")
    again = await api.uploaded()
    assert again["id"] != first["id"]


async def test_deleting_while_it_trains_cancels_and_finishes_when_the_training_has_stopped(api: Api) -> None:
    document = await api.uploaded()
    await api.index(document["id"], ["Staff get 31 days."])
    job = await claimed(api, JobKind.TRAIN)
    receipt = (await api.client.delete(f"/documents/{document['id']}")).json()
    assert not receipt["complete"]
    assert (await api.client.get(f"/documents/{document['id']}")).status_code == 404
    assert await writing(api.parts.database, jobs.heartbeat, job.id, job.attempt, 60.0), "the worker is told to stop"

    left = api.parts.settings.root / "work" / ACME / document["id"] / job.id
    left.mkdir(parents=True)
    (left / "checkpoint.bin").write_bytes(b"written while it stopped")
    await writing(api.parts.database, jobs.cancelled, job.id, job.attempt)
    await housework(api.parts)

    assert files(api) == []
    assert await counts(api) == [0, 0, 0, 0, 0]


async def test_an_ingest_that_outlived_its_document_can_still_clear_up(api: Api) -> None:
    document = await api.uploaded()
    job = await writing(api.parts.database, jobs.claim, JobKind.INGEST, "stalled", -1.0)
    assert job is not None
    assert not (await api.client.delete(f"/documents/{document['id']}")).json()["complete"]
    await housework(api.parts)
    assert await counts(api) == [0, 0, 0, 0, 0]
    remains = await writing(api.parts.database, ingest_records.withdraw, job, 60.0)
    assert (remains.lives, remains.upload.blob) == (False, f"{ACME}/{document['id']}/{job.revision_id}")


async def test_a_deletion_goes_on_when_the_index_is_back(api: Api) -> None:
    document = await api.uploaded(train="never")
    await api.index(document["id"], ["Staff get 31 days."])
    api.index_fake.error = IndexUnavailable("gone")
    receipt = (await api.client.delete(f"/documents/{document['id']}")).json()
    assert not receipt["complete"]
    assert files(api) == [], "what can be removed is removed"
    api.index_fake.error = None
    await housework(api.parts)
    assert api.index_fake.entries == []
    assert await counts(api) == [0, 0, 0, 0, 0]


async def test_a_deletion_that_a_crash_interrupted_is_finished(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    document = await api.uploaded(train="never")
    await api.index(document["id"], ["Staff get 31 days."])

    def crash(*_: Any) -> None:
        raise RuntimeError("killed")

    with monkeypatch.context() as patched:
        patched.setattr(api.parts.blobs, "delete_prefix", crash)
        assert (await api.client.delete(f"/documents/{document['id']}")).status_code == 500
    row = await api.sql(document_row(ACME, document["id"]))
    assert row.deleted_at is not None
    await housework(api.parts)
    assert await api.sql(document_row(ACME, document["id"])) is None
    assert files(api) == []


async def test_a_document_can_be_uploaded_and_deleted_before_the_models_are_there(api: Api) -> None:
    loading: Loading[Any] = Loading()
    object.__setattr__(api.parts, "models", loading)
    document = await api.uploaded()
    receipt = (await api.client.delete(f"/documents/{document['id']}")).json()
    assert not receipt["complete"]
    assert (await api.client.post("/search", json={"query": "days"})).json()["code"] == Starting.code


async def test_a_job_of_a_dead_worker_is_queued_again_and_rung_for(api: Api) -> None:
    document = await api.uploaded()
    await api.index(document["id"], ["Staff get 31 days."])
    job = await writing(api.parts.database, jobs.claim, JobKind.TRAIN, "dead", -1.0)
    assert job is not None
    before = api.ring.calls
    await housework(api.parts)
    await api.parts.tasks.finish()
    shown = (await api.client.get(f"/jobs/{job.id}")).json()
    assert (shown["state"], api.ring.calls) == (JobState.QUEUED, before + 1)
