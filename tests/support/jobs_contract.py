"""What server/db/jobs.py promises, on whatever database the fixture `database` is."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from sqlalchemy import select, update

from server.db import documents, jobs
from server.db.clock import db_now
from server.db.session import SyncDatabase
from server.db.tables import Document, DocumentStatus, Job, JobKind, JobState
from server.errors import JobLost
from tests.support.rows import Uploaded, add_revision, document_row, expire_lease, job_row, skip_wait, training, upload

LEASE = 60.0


def enqueued(database: SyncDatabase, tenant_id: str = "acme", **options: Any) -> tuple[Uploaded, str]:
    with database.write() as session:
        document = upload(session, tenant_id)
        return document, training(session, document, **options).id


def claimed(database: SyncDatabase, kind: JobKind = JobKind.TRAIN) -> Job:
    with database.write() as session:
        job = jobs.claim(session, kind, "worker-1", LEASE)
    assert job is not None
    return job


def status(database: SyncDatabase, document: Uploaded) -> tuple[str, dict[str, Any] | None]:
    with database.read() as session:
        row = document_row(session, document)
        return row.status, row.error


class ClaimContract:
    def test_claim_takes_a_queued_job_once(self, database: SyncDatabase) -> None:
        document, job_id = enqueued(database)
        job = claimed(database)
        assert (job.id, job.state, job.attempt, job.lease_owner) == (job_id, JobState.RUNNING, 1, "worker-1")
        assert job.lease_until is not None
        assert job.started_at is not None
        assert job.lease_until - job.started_at == pytest.approx(LEASE, abs=1.0)
        with database.write() as session:
            assert jobs.claim(session, JobKind.TRAIN, "worker-2", LEASE) is None
        assert status(database, document) == (DocumentStatus.TRAINING, None)

    def test_claim_is_of_one_kind(self, database: SyncDatabase) -> None:
        enqueued(database)
        with database.write() as session:
            assert jobs.claim(session, JobKind.INGEST, "api", LEASE) is None

    def test_priority_goes_before_age(self, database: SyncDatabase) -> None:
        enqueued(database)
        _, urgent = enqueued(database, priority=5)
        assert claimed(database).id == urgent

    def test_tenants_take_turns(self, database: SyncDatabase) -> None:
        for tenant in ("big", "big", "big", "small", "third"):
            enqueued(database, tenant)
        assert [claimed(database).tenant_id for _ in range(5)] == ["big", "small", "third", "big", "big"]

    def test_the_oldest_goes_first_within_a_tenant(self, database: SyncDatabase) -> None:
        ids = [enqueued(database)[1] for _ in range(3)]
        assert [claimed(database).id for _ in range(3)] == ids

    def test_concurrent_claims_never_share_a_job(self, database: SyncDatabase) -> None:
        ids = {enqueued(database, f"tenant-{number % 3}")[1] for number in range(12)}
        taken: list[str] = []

        def drain() -> None:
            while True:
                with database.write() as session:
                    job = jobs.claim(session, JobKind.TRAIN, threading.current_thread().name, LEASE)
                if job is None:
                    return
                taken.append(job.id)

        threads = [threading.Thread(target=drain) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert sorted(taken) == sorted(ids)

    def test_a_deleted_document_is_never_worked_on(self, database: SyncDatabase) -> None:
        document, job_id = enqueued(database)
        with database.write() as session:
            mine = update(Document).where(Document.id == document.document_id, Document.tenant_id == document.tenant_id)
            session.execute(mine.values(deleted_at=db_now()))
        with database.write() as session:
            assert jobs.claim(session, JobKind.TRAIN, "worker-1", LEASE) is None
        with database.read() as session:
            assert job_row(session, job_id).state == JobState.CANCELLED

    def test_training_of_an_old_revision_does_not_show_in_the_document(self, database: SyncDatabase) -> None:
        document, _ = enqueued(database)
        with database.write() as session:
            add_revision(session, document.tenant_id, document.document_id, "rev_2", 2)
            documents.set_status(session, document.document_id, document.tenant_id, DocumentStatus.INGESTING)
        job = claimed(database)
        assert status(database, document)[0] == DocumentStatus.INGESTING
        with database.write() as session:
            jobs.fail(session, job.id, job.attempt, code="gate_not_passed", message="no better")
        assert status(database, document) == (DocumentStatus.INGESTING, None)


class FenceContract:
    def test_heartbeat_extends_the_lease(self, database: SyncDatabase) -> None:
        enqueued(database)
        job = claimed(database)
        with database.write() as session:
            assert jobs.heartbeat(session, job.id, job.attempt, 600) is False
            assert (job_row(session, job.id).lease_until or 0) > (job.lease_until or 0) + 500

    def test_progress_and_metrics_stand_in_the_row(self, database: SyncDatabase) -> None:
        enqueued(database)
        job = claimed(database)
        with database.write() as session:
            jobs.record_metrics(session, job.id, 1, {"examples": 12})
            told = jobs.progress(session, job.id, 1, stage="fitting", done=3, total=9, unit="steps", eta_seconds=4.5, metrics={"loss": 0.5})
        assert told is False
        with database.read() as session:
            row = job_row(session, job.id)
        assert row.stage == "fitting"
        assert row.progress == {"done": 3, "total": 9, "unit": "steps", "eta_seconds": 4.5}
        assert row.metrics == {"examples": 12, "loss": 0.5}

    def test_an_old_attempt_writes_nothing(self, database: SyncDatabase) -> None:
        """The lease ran out, another worker has the job: whatever the first one still tries is refused."""
        enqueued(database)
        old = claimed(database)
        with database.write() as session:
            expire_lease(session, old.id)
            jobs.reap(session)
        new = claimed(database)
        assert (new.id, new.attempt) == (old.id, 2)
        for write in (
            lambda session: jobs.heartbeat(session, old.id, 1, LEASE),
            lambda session: jobs.progress(session, old.id, 1, stage="fitting", done=1, total=2, unit="steps"),
            lambda session: jobs.record_metrics(session, old.id, 1, {"loss": 1.0}),
            lambda session: jobs.succeed(session, old.id, 1),
            lambda session: jobs.fail(session, old.id, 1, code="gate_not_passed", message="no"),
            lambda session: jobs.cancelled(session, old.id, 1),
            lambda session: jobs.release(session, old.id, 1),
            lambda session: jobs.retry(session, old.id, 1, code="trainer_crashed", message="no"),
        ):
            with pytest.raises(JobLost), database.write() as session:
                write(session)
        with database.read() as session:
            row = job_row(session, old.id)
        assert (row.state, row.attempt, row.stage, row.metrics, row.error) == (JobState.RUNNING, 2, None, {}, None)

    def test_nothing_is_written_after_the_end(self, database: SyncDatabase) -> None:
        enqueued(database)
        job = claimed(database)
        with database.write() as session:
            jobs.succeed(session, job.id, 1)
        with pytest.raises(JobLost), database.write() as session:
            jobs.progress(session, job.id, 1, stage="fitting", done=1, total=2, unit="steps")
        with database.read() as session:
            row = job_row(session, job.id)
        assert (row.state, row.lease_owner, row.lease_until) == (JobState.SUCCEEDED, None, None)
        assert row.finished_at is not None


class EndContract:
    def test_failure_shows_in_job_and_document(self, database: SyncDatabase) -> None:
        document, job_id = enqueued(database)
        claimed(database)
        with database.write() as session:
            jobs.fail(session, job_id, 1, code="gate_not_passed", message="the module learned too little")
        error = {"code": "gate_not_passed", "message": "the module learned too little"}
        with database.read() as session:
            assert (job_row(session, job_id).state, job_row(session, job_id).error) == (JobState.FAILED, error)
        assert status(database, document) == (DocumentStatus.RETRIEVAL_READY, error)

    def test_failure_leaves_an_older_module_in_service(self, database: SyncDatabase) -> None:
        document, job_id = enqueued(database)
        with database.write() as session:
            mine = update(Document).where(Document.id == document.document_id, Document.tenant_id == document.tenant_id)
            session.execute(mine.values(module_id="mod_1"))
        claimed(database)
        with database.write() as session:
            jobs.fail(session, job_id, 1, code="nothing_to_learn", message="no examples")
        assert status(database, document)[0] == DocumentStatus.READY

    def test_a_failed_ingest_fails_the_document(self, database: SyncDatabase) -> None:
        with database.write() as session:
            document = upload(session, status=DocumentStatus.INGESTING)
            jobs.enqueue(session, **vars(document), kind=JobKind.INGEST, params={})
        job = claimed(database, JobKind.INGEST)
        with database.write() as session:
            jobs.fail(session, job.id, 1, code="no_text_layer", message="scan it with OCR first")
        assert status(database, document) == (DocumentStatus.FAILED, {"code": "no_text_layer", "message": "scan it with OCR first"})

    def test_release_gives_the_attempt_back(self, database: SyncDatabase) -> None:
        _, job_id = enqueued(database, max_attempts=1)
        for attempt in (1, 2, 3):
            assert claimed(database).attempt == attempt
            with database.write() as session:
                assert jobs.release(session, job_id, attempt).state == JobState.QUEUED

    def test_retry_is_bounded_by_the_attempts(self, database: SyncDatabase) -> None:
        _, job_id = enqueued(database, max_attempts=2)
        claimed(database)
        with database.write() as session:
            again = jobs.retry(session, job_id, 1, code="trainer_crashed", message="it died", params={"micro_batch": 2})
        assert (again.state, again.params, again.lease_owner, again.not_before) == (JobState.QUEUED, {"micro_batch": 2}, None, None)
        claimed(database)
        with database.write() as session:
            ended = jobs.retry(session, job_id, 2, code="trainer_crashed", message="it died")
        assert (ended.state, ended.error) == (JobState.FAILED, {"code": "trainer_crashed", "message": "it died"})


class WaitContract:
    """The pause after a failed attempt."""

    def test_a_failed_attempt_waits_longer_each_time(self, database: SyncDatabase) -> None:
        _, job_id = enqueued(database, max_attempts=12)
        waits = [self.failed(database, job_id) for _ in range(9)]
        assert waits == pytest.approx([10, 20, 40, 80, 160, 320, 600, 600, 600], abs=1.0)

    def failed(self, database: SyncDatabase, job_id: str) -> float:
        """Seconds until the job is due after one more failed attempt."""
        job = claimed(database)
        assert (job.id, job.not_before, job.error) == (job_id, None, None)
        with database.write() as session:
            waiting = jobs.retry(session, job_id, job.attempt, code="job_failed", message="the disk is full")
            due = waiting.not_before
            assert waiting.error == {"code": "job_failed", "message": "the disk is full"}
            now: float | None = session.scalar(select(db_now()))
            skip_wait(session, job_id)
        assert due is not None
        assert now is not None
        return due - now

    def test_a_job_that_waits_is_neither_claimed_nor_rung_for(self, database: SyncDatabase) -> None:
        _, job_id = enqueued(database)
        job = claimed(database)
        _, other = enqueued(database)
        with database.write() as session:
            session.execute(update(Job).values(created_at=db_now() - 100))
            jobs.unrung(session, 30)
            jobs.retry(session, job_id, job.attempt, code="job_failed", message="the disk is full")
            assert jobs.unrung(session, 30) == []
        assert claimed(database).id == other, "it keeps nobody else waiting"
        with database.write() as session:
            assert jobs.claim(session, JobKind.TRAIN, "worker-1", LEASE) is None
            skip_wait(session, job_id)
            assert jobs.unrung(session, 30) == [job_id]
        assert claimed(database).id == job_id

    def test_a_job_that_waits_is_cancelled_at_once(self, database: SyncDatabase) -> None:
        _, job_id = enqueued(database)
        claimed(database)
        with database.write() as session:
            jobs.retry(session, job_id, 1, code="job_failed", message="the disk is full")
            assert jobs.request_cancel(session, "acme", job_id) == JobState.CANCELLED

    @pytest.mark.parametrize("step", ["release", "reap"])
    def test_a_job_that_did_not_fail_does_not_wait(self, database: SyncDatabase, step: str) -> None:
        _, job_id = enqueued(database)
        claimed(database)
        with database.write() as session:
            if step == "release":
                jobs.release(session, job_id, 1)
            else:
                expire_lease(session, job_id)
                jobs.reap(session)
        assert claimed(database).id == job_id
