"""The worker over PostgreSQL and Redis: the same code as over SQLite and the directory broker, with other settings."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import select

from server.db import documents, jobs
from server.db.session import Database, SyncDatabase
from server.db.tables import DocumentStatus, Job, JobKind, JobState
from server.errors import Conflict, DocumentNotFound, JobLost
from server.jobs.bell import Bell
from tests.support.databases import empty_postgres, migrated
from tests.support.rows import training, upload
from tests.support.servers import postgres_server, redis_server
from tests.support.training_rig import PATIENCE, Rig, alive, eventually, fake_artefact, make_rig, stage
from tests.support.worker_process import worker_process

ENDS = {JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED}


@pytest.fixture(scope="module")
def postgres_url() -> Iterator[str]:
    with postgres_server() as url:
        yield url


@pytest.fixture(scope="module")
def redis_url() -> Iterator[str]:
    with redis_server() as url:
        yield url


@pytest.fixture
def rig(tmp_path: Path, postgres_url: str, redis_url: str) -> Iterator[Rig]:
    """With a reaper that would ring far too late: only the bell wakes the worker."""
    empty_postgres(postgres_url)
    rig = make_rig(tmp_path, database_url=postgres_url, broker_url=redis_url, lease_seconds=60, reap_seconds=600, ring_seconds=600)
    yield rig
    rig.close()


def test_a_bell_through_redis_wakes_a_worker_that_publishes(rig: Rig, tmp_path: Path) -> None:
    with worker_process(rig.settings):
        eventually(lambda: "ready" in (tmp_path / "worker.log").read_text())
        document, job_id = rig.upload([stage("fitting"), fake_artefact(tmp_path / "made").step()])
        assert Bell(rig.settings).ring()
        eventually(lambda: rig.job(job_id).state == JobState.SUCCEEDED)
    assert (rig.document(document).status, len(rig.versions(document))) == (DocumentStatus.READY, 1)


def test_a_shutdown_hands_the_job_to_the_next_worker(rig: Rig, tmp_path: Path) -> None:
    steps = [stage("fitting"), {"wait_for": "never", "only_attempt": 1}, fake_artefact(tmp_path / "made").step()]
    document, job_id = rig.upload(steps)
    with worker_process(rig.settings) as worker:
        rig.reach(job_id, "fitting")
        pid = rig.trainer_pid(document, job_id)
        with worker_process(rig.settings):
            assert worker.terminate() == 0
            assert not alive(pid)
            eventually(lambda: rig.job(job_id).state == JobState.SUCCEEDED)
    assert rig.job(job_id).attempt == 2


async def test_the_api_side_over_asyncpg(postgres_url: str) -> None:
    empty_postgres(postgres_url)
    migrated(postgres_url).close()
    database = Database(postgres_url)
    async with database.write() as session:
        job = await session.run_sync(lambda sync: training(sync, upload(sync)))
    async with database.write() as session:
        claimed = await session.run_sync(jobs.claim, JobKind.TRAIN, "api", 60.0)
        assert claimed is not None
        assert await session.run_sync(jobs.request_cancel, "acme", job.id) == JobState.RUNNING
    await database.close()


def test_no_two_steps_wait_for_each_other(postgres_url: str) -> None:
    """Everything that happens to jobs and documents, at once and at random: PostgreSQL would abort a deadlocked step. For three seconds,
    and until jobs have ended in every way."""
    empty_postgres(postgres_url)
    database = migrated(postgres_url)
    failures: list[BaseException] = []
    enough = threading.Event()

    def repeat(step: Callable[[SyncDatabase, random.Random], None], seed: int) -> None:
        choice = random.Random(seed)
        while not enough.is_set() and not failures:
            try:
                step(database, choice)
            except (JobLost, DocumentNotFound, Conflict):
                pass
            except BaseException as error:
                failures.append(error)

    steps = [_enqueue, _run_one, _run_one, _run_one, _cancel_one, _delete_one, _reap]
    threads = [threading.Thread(target=repeat, args=(step, seed)) for seed, step in enumerate(steps)]
    for thread in threads:
        thread.start()

    def reached() -> bool:
        with database.read() as session:
            return set(session.scalars(select(Job.state).distinct())) >= ENDS

    try:
        time.sleep(3)
        eventually(lambda: failures or reached())
    finally:
        enough.set()
    for thread in threads:
        thread.join(PATIENCE)
    database.close()
    assert failures == []


def _enqueue(database: SyncDatabase, choice: random.Random) -> None:
    with database.write() as session:
        document = upload(session, choice.choice(["acme", "globex"]))
        for _ in range(3):
            training(session, document)


def _run_one(database: SyncDatabase, choice: random.Random) -> None:
    with database.write() as session:
        job = jobs.claim(session, JobKind.TRAIN, "worker", choice.choice([0.001, 60]))
    if job is None:
        return
    with database.write() as session:
        jobs.progress(session, job.id, job.attempt, stage="fitting", done=1, total=2, unit="steps")
    with database.write() as session:
        match choice.randrange(4):
            case 0:
                jobs.fail(session, job.id, job.attempt, code="gate_not_passed", message="no better")
            case 1:
                jobs.release(session, job.id, job.attempt)
            case 2:
                jobs.retry(session, job.id, job.attempt, code="trainer_crashed", message="it died")
            case _:
                jobs.hold(session, job.id, job.attempt)
                documents.advance(session, job, DocumentStatus.READY)
                jobs.succeed(session, job.id, job.attempt)


def _any_job(database: SyncDatabase, choice: random.Random) -> Job | None:
    with database.read() as session:
        found = list(session.scalars(select(Job).where(Job.state.in_((JobState.QUEUED, JobState.RUNNING)))))
    return choice.choice(found) if found else None


def _cancel_one(database: SyncDatabase, choice: random.Random) -> None:
    if (job := _any_job(database, choice)) is not None:
        with database.write() as session:
            jobs.request_cancel(session, job.tenant_id, job.id)


def _delete_one(database: SyncDatabase, choice: random.Random) -> None:
    if (job := _any_job(database, choice)) is not None:
        with database.write() as session:
            documents.tombstone(session, job.tenant_id, job.subject.document_id)


def _reap(database: SyncDatabase, _: random.Random) -> None:
    with database.write() as session:
        jobs.reap_once(session, ring_seconds=0.01)
