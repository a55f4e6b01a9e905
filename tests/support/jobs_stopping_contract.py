"""How the jobs of server/db/jobs.py are stopped, recovered and end with their document, on whatever database `database` is."""

from __future__ import annotations

import pytest
from sqlalchemy import select, update

from server.db import documents, jobs
from server.db.clock import db_now
from server.db.session import SyncDatabase
from server.db.tables import Document, DocumentStatus, Job, JobKind, JobState
from server.errors import Conflict, DocumentNotFound, JobNotFound
from tests.support.jobs_contract import LEASE, claimed, enqueued, status
from tests.support.rows import expire_lease, job_row, training, upload


class CancelContract:
    def test_a_queued_job_is_cancelled_without_a_worker(self, database: SyncDatabase) -> None:
        document, job_id = enqueued(database)
        with database.write() as session:
            assert jobs.request_cancel(session, "acme", job_id) == JobState.CANCELLED
            assert jobs.claim(session, JobKind.TRAIN, "worker-1", LEASE) is None
        assert status(database, document) == (DocumentStatus.RETRIEVAL_READY, None)

    def test_a_running_job_is_told_and_ends_cancelled(self, database: SyncDatabase) -> None:
        document, job_id = enqueued(database)
        claimed(database)
        with database.write() as session:
            assert jobs.request_cancel(session, "acme", job_id) == JobState.RUNNING
            assert jobs.heartbeat(session, job_id, 1, LEASE) is True
            assert jobs.progress(session, job_id, 1, stage="fitting", done=1, total=2, unit="steps") is True
            assert jobs.cancelled(session, job_id, 1).state == JobState.CANCELLED
        assert status(database, document)[0] == DocumentStatus.RETRIEVAL_READY

    @pytest.mark.parametrize("step", ["release", "retry", "reap"])
    def test_a_job_told_to_stop_is_never_queued_again(self, database: SyncDatabase, step: str) -> None:
        document, job_id = enqueued(database)
        claimed(database)
        with database.write() as session:
            jobs.request_cancel(session, "acme", job_id)
            if step == "release":
                jobs.release(session, job_id, 1)
            elif step == "retry":
                jobs.retry(session, job_id, 1, code="trainer_crashed", message="it died")
            else:
                expire_lease(session, job_id)
                jobs.reap(session)
            assert job_row(session, job_id).state == JobState.CANCELLED
        assert status(database, document)[0] == DocumentStatus.RETRIEVAL_READY

    def test_an_ended_job_stays_as_it_is(self, database: SyncDatabase) -> None:
        _, job_id = enqueued(database)
        claimed(database)
        with database.write() as session:
            jobs.succeed(session, job_id, 1)
            assert jobs.request_cancel(session, "acme", job_id) == JobState.SUCCEEDED
            assert job_row(session, job_id).cancel_requested is False

    def test_another_tenants_job_is_not_found(self, database: SyncDatabase) -> None:
        _, job_id = enqueued(database)
        with pytest.raises(JobNotFound), database.write() as session:
            jobs.request_cancel(session, "umbrella", job_id)


class ReapContract:
    def test_an_expired_lease_is_queued_again(self, database: SyncDatabase) -> None:
        _, job_id = enqueued(database)
        claimed(database)
        with database.write() as session:
            expire_lease(session, job_id)
            reaped = jobs.reap_once(session, ring_seconds=30)
        assert [(job.id, job.state) for job in reaped.jobs] == [(job_id, JobState.QUEUED)]
        assert reaped.ring

    def test_a_living_lease_is_left_alone(self, database: SyncDatabase) -> None:
        enqueued(database)
        claimed(database)
        with database.write() as session:
            assert jobs.reap_once(session, ring_seconds=30) == jobs.Reaped(jobs=(), ring=False)

    def test_the_last_attempt_fails(self, database: SyncDatabase) -> None:
        document, job_id = enqueued(database, max_attempts=2)
        for _ in range(2):
            claimed(database)
            with database.write() as session:
                expire_lease(session, job_id)
                jobs.reap(session)
        with database.read() as session:
            row = job_row(session, job_id)
        assert (row.state, (row.error or {})["code"]) == (JobState.FAILED, "attempts_exhausted")
        assert status(database, document)[0] == DocumentStatus.RETRIEVAL_READY

    def test_forgotten_rows_are_rung_for_once_a_period(self, database: SyncDatabase) -> None:
        _, job_id = enqueued(database)
        with database.write() as session:
            assert jobs.unrung(session, 30) == []
            session.execute(update(Job).where(Job.id == job_id).values(created_at=db_now() - 31))
            assert jobs.unrung(session, 30) == [job_id]
            assert jobs.unrung(session, 30) == []

    def test_ingest_rows_need_no_bell(self, database: SyncDatabase) -> None:
        with database.write() as session:
            document = upload(session, status=DocumentStatus.INGESTING)
            job = jobs.enqueue(session, **vars(document), kind=JobKind.INGEST, params={})
            session.execute(update(Job).where(Job.id == job.id).values(created_at=db_now() - 100))
            assert jobs.reap_once(session, ring_seconds=30).ring is False


class DocumentContract:
    def test_transitions_that_do_not_exist_are_refused(self, database: SyncDatabase) -> None:
        document, _ = enqueued(database)
        with pytest.raises(Conflict, match="retrieval_ready cannot become failed"), database.write() as session:
            documents.set_status(session, document.document_id, "acme", DocumentStatus.FAILED)

    def test_every_change_raises_the_row_version(self, database: SyncDatabase) -> None:
        document, _ = enqueued(database)
        with database.write() as session:
            moved = documents.set_status(session, document.document_id, "acme", DocumentStatus.READY)
            assert (moved.status, moved.row_version) == (DocumentStatus.READY, 2)

    def test_a_foreign_document_is_not_found(self, database: SyncDatabase) -> None:
        document, _ = enqueued(database)
        with pytest.raises(DocumentNotFound), database.write() as session:
            documents.set_status(session, document.document_id, "umbrella", DocumentStatus.READY)

    def test_tombstone_cancels_every_job(self, database: SyncDatabase) -> None:
        document, running = enqueued(database)
        claimed(database)
        with database.write() as session:
            queued = training(session, document).id
        with database.write() as session:
            assert [job.id for job in documents.tombstone(session, "acme", document.document_id)] == [running]
        with database.read() as session:
            assert job_row(session, queued).state == JobState.CANCELLED
            assert job_row(session, running).cancel_requested
            assert session.scalars(select(Document).where(Document.tenant_id == "acme", Document.deleted_at.is_(None))).all() == []
        with pytest.raises(DocumentNotFound), database.write() as session:
            documents.tombstone(session, "acme", document.document_id)

    def test_a_job_of_a_deleted_document_still_ends(self, database: SyncDatabase) -> None:
        document, job_id = enqueued(database)
        claimed(database)
        with database.write() as session:
            documents.tombstone(session, "acme", document.document_id)
        with database.write() as session:
            assert jobs.cancelled(session, job_id, 1).state == JobState.CANCELLED
        assert status(database, document)[0] == DocumentStatus.TRAINING
