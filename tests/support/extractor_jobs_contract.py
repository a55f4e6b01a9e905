"""What the database promises of extractors: their jobs, the switch of the active one, re-training. On whatever `database` is."""

from __future__ import annotations

import threading
from typing import Any

from sqlalchemy import func, select

from server.db import activation, documents, extractors, jobs, material
from server.db.session import SyncDatabase
from server.db.tables import ExtractorDocument, ExtractorQuestion, Job, JobKind, JobState
from tests.support import rows
from tests.support.rows import Uploaded, expire_lease, extractor, extractor_training, job_row, publish_module, training, upload

OLD, NEW, OTHER = ("a" * 64, "b" * 64, "d" * 64)


def wearing(database: SyncDatabase, wears: str | None, tenant_id: str = "acme") -> Uploaded:
    """A document that is answered by a module that wears this lora."""
    with database.write() as session:
        document = upload(session, tenant_id)
        publish_module(session, document, wears=wears)
        return document


def added(database: SyncDatabase, owner: str, lora: str, *, active: bool = False, **changes: Any) -> str:
    with database.write() as session:
        return extractor(session, owner, lora, active=active, **changes)


def switched(database: SyncDatabase, owner: str, extractor_id: str | None, *, wearing: bool = True) -> int:
    with database.write() as session:
        return activation.switch(session, owner, extractor_id, wearing=wearing, max_attempts=3)


def retrainings(database: SyncDatabase) -> list[str]:
    """The documents that are queued to be trained again."""
    with database.read() as session:
        queued = select(Job).where(Job.kind == JobKind.TRAIN, Job.state == JobState.QUEUED)
        return [str(job.document_id) for job in session.scalars(queued) if job.params.get("reason") == activation.REASON]


def active_loras(database: SyncDatabase, owner: str) -> list[str]:
    with database.write() as session:
        return [each.lora_digest for each in extractors.lock(session, owner) if each.active]


def count(database: SyncDatabase, table: type[Any]) -> int:
    with database.read() as session:
        return session.scalar(select(func.count()).select_from(table)) or 0


class ExtractorJobContract:
    def test_a_worker_claims_it_in_turn_with_trainings(self, database: SyncDatabase) -> None:
        with database.write() as session:
            first = extractor_training(session, upload(session)).id
            second = training(session, upload(session)).id
            theirs = training(session, upload(session, "globex")).id
        taken = []
        with database.write() as session:
            while (job := jobs.claim(session, jobs.WORKER_KINDS, "worker-1", 60.0)) is not None:
                taken.append(job.id)
        assert taken == [first, theirs, second]

    def test_it_shows_in_no_document(self, database: SyncDatabase) -> None:
        with database.write() as session:
            document = upload(session)
            job_id = extractor_training(session, document).id
            job = jobs.claim(session, JobKind.EXTRACTOR, "worker-1", 60.0)
            assert job is not None
            jobs.fail(session, job_id, 1, code="gate_not_passed", message="no better")
        with database.read() as session:
            assert rows.document_row(session, document).status == "retrieval_ready"
            assert job_row(session, job_id).state == JobState.FAILED

    def test_a_dead_workers_is_queued_again_and_rung_for(self, database: SyncDatabase) -> None:
        with database.write() as session:
            job_id = extractor_training(session, upload(session)).id
            jobs.claim(session, jobs.WORKER_KINDS, "worker-1", 60.0)
            expire_lease(session, job_id)
            reaped = jobs.reap_once(session, ring_seconds=30)
            assert ([job.id for job in reaped.jobs], reaped.ring) == ([job_id], True)
            again = jobs.claim(session, JobKind.EXTRACTOR, "worker-2", 60.0)
            assert again is not None
            assert (again.id, again.attempt) == (job_id, 2)
            assert jobs.release(session, job_id, 2).state == JobState.QUEUED

    def test_it_is_cancelled_queued_and_running(self, database: SyncDatabase) -> None:
        with database.write() as session:
            queued = extractor_training(session, upload(session)).id
            assert jobs.request_cancel(session, "acme", queued) == JobState.CANCELLED
            running = extractor_training(session, upload(session)).id
            jobs.claim(session, jobs.WORKER_KINDS, "worker-1", 60.0)
            assert jobs.request_cancel(session, "acme", running) == JobState.RUNNING
            assert jobs.heartbeat(session, running, 1, 60.0)

    def test_deleting_a_document_stops_what_learns_from_it(self, database: SyncDatabase) -> None:
        with database.write() as session:
            document, other = upload(session), upload(session)
            running = extractor_training(session, document, other).id
            jobs.claim(session, jobs.WORKER_KINDS, "worker-1", 60.0)
            queued = extractor_training(session, document).id
            untouched = extractor_training(session, other).id
            assert [job.id for job in documents.tombstone(session, "acme", document.document_id)] == [running]
            assert jobs.heartbeat(session, running, 1, 60.0), "its worker is told to stop"
            assert (job_row(session, queued).state, job_row(session, untouched).state) == (JobState.CANCELLED, JobState.QUEUED)
            assert [asked.document_id for asked in material.questions(session, "acme", running)] == [other.document_id]
            assert material.questions(session, "globex", running) == []

    def test_questions_go_when_the_job_has_ended_and_what_it_learned_from_if_it_published_nothing(self, database: SyncDatabase) -> None:
        with database.write() as session:
            published = extractor_training(session, upload(session))
            jobs.claim(session, jobs.WORKER_KINDS, "worker-1", 60.0)
            failed = extractor_training(session, upload(session))
            jobs.claim(session, jobs.WORKER_KINDS, "worker-1", 60.0)
            extractor_training(session, upload(session))
            extractor(session, "acme", NEW, active=False, job_id=published.id)
            jobs.succeed(session, published.id, 1)
            jobs.fail(session, failed.id, 1, code="gate_not_passed", message="no better")
            material.sweep(session)
            assert material.revisions(session, "acme", failed.id) == {}
            assert len(material.revisions(session, "acme", published.id)) == 1
        assert (count(database, ExtractorQuestion), count(database, ExtractorDocument)) == (1, 2), "those that are still waited for"


class ActivationContract:
    def test_one_is_active_for_an_owner(self, database: SyncDatabase) -> None:
        added(database, "acme", OLD, active=True)
        theirs = added(database, "globex", OTHER, active=True)
        new = added(database, "acme", NEW)
        switched(database, "acme", new)
        assert (active_loras(database, "acme"), active_loras(database, "globex")) == ([NEW], [OTHER])
        switched(database, "acme", None)
        assert active_loras(database, "acme") == []
        switched(database, "acme", theirs)
        assert active_loras(database, "acme") == [], "another's is not an owner's to choose"

    def test_many_at_once_leave_one_active(self, database: SyncDatabase) -> None:
        with database.write() as session:
            upload(session)
        ids = [added(database, "acme", number * 64) for number in "abcdef"]
        threads = [threading.Thread(target=switched, args=(database, "acme", extractor_id)) for extractor_id in ids]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert len(active_loras(database, "acme")) == 1

    def test_another_lora_trains_again_what_wears_the_old_one(self, database: SyncDatabase) -> None:
        added(database, "acme", OLD, active=True)
        new = added(database, "acme", NEW)
        worn, behind = wearing(database, OLD), wearing(database, OTHER)
        wearing(database, None)
        wearing(database, NEW)
        wearing(database, OLD, "globex")
        assert switched(database, "acme", new) == 2
        assert set(retrainings(database)) == {worn.document_id, behind.document_id}
        assert switched(database, "acme", new) == 0, "once"
        with database.read() as session:
            job = session.scalars(select(Job).where(Job.document_id == worn.document_id)).one()
            assert (job.params, job.max_attempts) == ({"preset": "quick", "reason": "extractor_changed"}, 3)
            assert rows.document_row(session, worn).status == "ready", "it answers meanwhile"

    def test_a_new_upload_is_trained_before_what_is_trained_again(self, database: SyncDatabase) -> None:
        added(database, "acme", OLD, active=True)
        wearing(database, OLD)
        switched(database, "acme", added(database, "acme", NEW))
        with database.write() as session:
            fresh = training(session, upload(session)).id
            job = jobs.claim(session, jobs.WORKER_KINDS, "worker-1", 60.0)
        assert job is not None
        assert job.id == fresh

    def test_other_weights_over_the_same_lora_train_nothing(self, database: SyncDatabase) -> None:
        added(database, "acme", OLD, active=True)
        wearing(database, OLD)
        weights = added(database, "acme", OLD, id="ext_weights", composition_digest="9" * 64)
        assert switched(database, "acme", weights) == 0

    def test_a_training_that_is_queued_is_enough_and_one_that_runs_is_not(self, database: SyncDatabase) -> None:
        """What runs wears what was active when it was started."""
        added(database, "acme", OLD, active=True)
        with database.write() as session:
            running = upload(session)
            publish_module(session, running, wears=None)
            training(session, running)
            jobs.claim(session, jobs.WORKER_KINDS, "worker-1", 60.0)
        queued = wearing(database, OLD)
        with database.write() as session:
            training(session, queued)
        assert switched(database, "acme", added(database, "acme", NEW)) == 1
        assert retrainings(database) == [running.document_id]

    def test_one_that_runs_and_wears_nothing_is_enough(self, database: SyncDatabase) -> None:
        added(database, "acme", OLD, active=True)
        with database.write() as session:
            training(session, upload(session))
            jobs.claim(session, jobs.WORKER_KINDS, "worker-1", 60.0)
        worn = wearing(database, OLD)
        assert switched(database, "acme", added(database, "acme", NEW), wearing=False) == 1
        assert retrainings(database) == [worn.document_id]

    def test_the_first_extractor_trains_nothing(self, database: SyncDatabase) -> None:
        """What was trained without one is served with any."""
        wearing(database, None)
        assert switched(database, "acme", added(database, "acme", NEW)) == 0

    def test_the_systems_serves_whoever_has_none_active(self, database: SyncDatabase) -> None:
        added(database, "system", OLD, active=True)
        added(database, "acme", OTHER, active=True)
        wearing(database, OTHER)
        wearing(database, OLD)
        theirs = wearing(database, OLD, "globex")
        assert switched(database, "system", added(database, "system", NEW)) == 1
        assert retrainings(database) == [theirs.document_id]

    def test_without_its_own_a_tenant_goes_over_to_the_systems(self, database: SyncDatabase) -> None:
        added(database, "system", OLD, active=True)
        added(database, "acme", NEW, active=True)
        worn = wearing(database, NEW)
        assert switched(database, "acme", None) == 1
        assert retrainings(database) == [worn.document_id]

    def test_deleted_and_unread_documents_are_left_alone(self, database: SyncDatabase) -> None:
        added(database, "acme", OLD, active=True)
        deleted, replaced = wearing(database, OLD), wearing(database, OLD)
        with database.write() as session:
            documents.tombstone(session, "acme", deleted.document_id)
            rows.add_revision(session, "acme", replaced.document_id, "rev_2", 2)
        assert switched(database, "acme", added(database, "acme", NEW)) == 0
