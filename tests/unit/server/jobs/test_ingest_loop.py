from __future__ import annotations

import asyncio
import errno
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from server.db import documents, jobs
from server.db.session import Database, SyncDatabase
from server.db.tables import DocumentStatus, JobKind, JobState, Revision
from server.errors import BrokenDocument, IndexUnavailable, NoTextLayer
from server.jobs import ingest_loop
from server.retrieval.index import VectorIndex
from server.retrieval.ingest import Ingestor, Limits, Stage, passage_id
from tests.support.databases import migrated, sqlite_url
from tests.support.embeddings import FakeEmbedder, count_words
from tests.support.ingest_house import Hook, House, blob_of
from tests.support.rows import Uploaded, add_revision, expire_lease, skip_wait


@pytest.fixture
def rows(tmp_path: Path) -> Iterator[SyncDatabase]:
    database = migrated(sqlite_url(tmp_path))
    yield database
    database.close()


@pytest.fixture
async def house(tmp_path: Path, rows: SyncDatabase) -> AsyncIterator[House]:
    database = Database(sqlite_url(tmp_path))
    yield House(tmp_path, rows, database)
    await database.close()


@pytest.fixture
def quick_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest_loop, "SLOWEST_BEAT_SECONDS", 0.05)


async def wait_forever() -> None:
    await asyncio.Event().wait()


def raising(error: Exception) -> Hook:
    async def hook() -> None:
        raise error

    return hook


def cancel(session: Session, job_id: str) -> None:
    jobs.request_cancel(session, "acme", job_id)


def delete(session: Session, document: Uploaded) -> None:
    documents.tombstone(session, document.tenant_id, document.document_id)


def rename(session: Session, table: str, name: str) -> None:
    session.connection().exec_driver_sql(f"ALTER TABLE {table} RENAME TO {name}")


EVERYWHERE = [*Stage, "indexed"]
PATIENCE = 60.0


class TestHappyPath:
    async def test_an_upload_becomes_retrievable_and_its_training_is_queued(self, house: House) -> None:
        document, job_id = house.upload(preset="paper")
        assert await house.loop().run_once()
        assert house.job(job_id).state == JobState.SUCCEEDED
        assert house.document(document).status == DocumentStatus.TRAINING
        (training,) = house.training(document)
        assert (training.state, training.params, training.max_attempts) == (JobState.QUEUED, {"preset": "paper"}, 3)
        assert training.revision_id == document.revision_id
        assert house.rings == 1
        assert house.ingestor.indexed == {document.revision_id}
        assert house.has_text(document)

    async def test_what_is_known_of_the_revision_is_written_down(self, house: House) -> None:
        document, _ = house.upload()
        await house.loop().run_once()
        (passage,) = house.passages(document)
        assert (passage.id, passage.text, passage.tokens) == (passage_id(document.revision_id, 0), "thirty days", 2)
        assert (passage.document_id, passage.revision_id, passage.page) == (document.document_id, document.revision_id, None)
        with house.rows.read() as session:
            revision = session.scalars(select(Revision).where(Revision.id == document.revision_id)).one()
        assert passage.tenant_id == "acme"
        assert (revision.media_type, revision.pages, revision.tokens) == ("text/plain", None, 2)
        assert revision.indexed_at is not None

    async def test_without_training(self, house: House) -> None:
        document, _ = house.upload(train="never")
        await house.loop().run_once()
        assert house.document(document).status == DocumentStatus.RETRIEVAL_READY
        assert house.training(document) == []
        assert house.rings == 0

    async def test_nothing_to_do(self, house: House) -> None:
        assert not await house.loop().run_once()

    async def test_progress_can_be_seen(self, house: House) -> None:
        _, job_id = house.upload()
        seen: list[tuple[Any, ...]] = []

        async def look() -> None:
            job = house.job(job_id)
            seen.append((job.stage, job.progress, job.state))

        house.ingestor.hooks = {Stage.EMBEDDING: look}
        await house.loop().run_once()
        assert seen == [("embedding", {"done": 0, "total": 1, "unit": "passages", "eta_seconds": None}, JobState.RUNNING)]

    async def test_real_parts(self, house: House, tmp_path: Path) -> None:
        embedder = FakeEmbedder()
        index = VectorIndex(model=embedder.name, dimension=embedder.dimension, path=tmp_path / "qdrant")
        await index.open()
        limits = Limits(parse_seconds=30, parse_memory_bytes=1024**3, max_characters=10_000, passage_tokens=20)
        ingestor = Ingestor(index=index, embedder=embedder, count_base=count_words, limits=limits)
        document, _ = house.upload("# Leave\n\n- Thirty days.\n- Overtime is paid twice.\n")
        await house.loop(ingestor).run_once()
        assert [passage.text for passage in house.passages(document)] == ["Leave\n\n- Thirty days.\n- Overtime is paid twice."]
        assert house.blobs.read_text(f"{blob_of(document)}.txt") == "Leave\n\n- Thirty days.\n- Overtime is paid twice."
        assert await index.count("acme", document.document_id) == 1
        await index.close()


class TestFailure:
    @pytest.mark.parametrize("error", [BrokenDocument("save it again"), NoTextLayer("run OCR")])
    async def test_the_fault_is_the_documents(self, house: House, error: Any) -> None:
        document, job_id = house.upload()
        house.ingestor.hooks = {Stage.PARSING: raising(error)}
        await house.loop().run_once()
        expected = {"code": error.code, "message": error.detail}
        assert (house.job(job_id).state, house.job(job_id).error) == (JobState.FAILED, expected)
        assert (house.document(document).status, house.document(document).error) == (DocumentStatus.FAILED, expected)
        assert house.nothing_left(document)
        assert house.training(document) == []

    async def test_our_defect_is_logged_and_not_told(self, house: House, caplog: pytest.LogCaptureFixture) -> None:
        document, job_id = house.upload()
        house.ingestor.hooks = {"indexed": raising(ZeroDivisionError("a private detail"))}
        await house.loop().run_once()
        error = house.job(job_id).error
        assert error is not None
        assert error["code"] == "internal_error"
        assert "private" not in error["message"]
        assert "ZeroDivisionError" in caplog.text
        assert "private" not in caplog.text
        assert house.nothing_left(document)

    async def test_a_full_disk_has_its_code(self, house: House) -> None:
        _, job_id = house.upload()
        house.ingestor.hooks = {Stage.INDEXING: raising(OSError(errno.ENOSPC, "No space left on device", "/srv/secret/path"))}
        await house.loop().run_once()
        error = house.job(job_id).error
        assert error is not None
        assert error["code"] == "storage_full"
        assert "/srv" not in error["message"]

    async def test_an_index_out_of_reach_is_tried_again_later(self, house: House) -> None:
        document, job_id = house.upload()
        for state in (JobState.QUEUED, JobState.QUEUED, JobState.FAILED):
            house.ingestor.hooks = {Stage.INDEXING: raising(IndexUnavailable("does not answer"))}
            assert await house.loop().run_once()
            assert house.job(job_id).state == state
            assert not await house.loop().run_once()
            await house.later(skip_wait, job_id)()
        assert house.document(document).error == {"code": "index_unavailable", "message": "does not answer"}

    async def test_a_bell_that_breaks_harms_nothing(self, house: House) -> None:
        document, job_id = house.upload()
        loop = house.loop()
        loop._ring = lambda: 1 / 0
        with pytest.raises(ZeroDivisionError):
            await loop.run_once()
        assert house.job(job_id).state == JobState.SUCCEEDED
        assert house.ingestor.indexed == {document.revision_id}


class TestCancel:
    @pytest.mark.parametrize("where", EVERYWHERE)
    async def test_in_every_stage(self, house: House, where: str) -> None:
        document, job_id = house.upload()
        house.ingestor.hooks = {where: house.later(cancel, job_id)}
        await house.loop().run_once()
        assert house.job(job_id).state == JobState.CANCELLED
        assert house.document(document).status == DocumentStatus.CANCELLED
        assert house.nothing_left(document)
        assert house.training(document) == []
        assert house.blobs.read_text(blob_of(document)) == "thirty days"

    async def test_while_a_stage_takes_long(self, house: House, quick_beats: None) -> None:
        document, job_id = house.upload()

        async def cancel_and_wait() -> None:
            await house.later(cancel, job_id)()
            await wait_forever()

        house.ingestor.hooks = {Stage.PARSING: cancel_and_wait}
        async with asyncio.timeout(PATIENCE):
            await house.loop().run_once()
        assert house.document(document).status == DocumentStatus.CANCELLED


class TestDelete:
    @pytest.mark.parametrize("where", EVERYWHERE)
    async def test_in_every_stage_leaves_nothing(self, house: House, where: str) -> None:
        document, job_id = house.upload()
        house.ingestor.hooks = {where: house.later(delete, document)}
        await house.loop().run_once()
        assert house.job(job_id).state == JobState.CANCELLED
        assert house.nothing_left(document)
        with pytest.raises(FileNotFoundError):
            house.blobs.path(blob_of(document))

    async def test_whose_bytes_are_gone_already(self, house: House) -> None:
        document, job_id = house.upload()

        async def delete_with_files() -> None:
            await house.later(delete, document)()
            house.blobs.delete_prefix(f"acme/{document.document_id}")
            raise BrokenDocument("there is nothing to read")

        house.ingestor.hooks = {Stage.PARSING: delete_with_files}
        await house.loop().run_once()
        assert house.job(job_id).state == JobState.FAILED
        assert house.nothing_left(document)


class TestLease:
    async def test_long_work_keeps_its_lease(self, house: House, quick_beats: None) -> None:
        document, job_id = house.upload()

        async def long_and_reaped() -> None:
            await house.later(expire_lease, job_id)()
            await until(lambda: (house.job(job_id).lease_until or 0) > time.time())
            await house.later(jobs.reap)()

        house.ingestor.hooks = {Stage.EMBEDDING: long_and_reaped}
        await house.loop().run_once()
        assert house.job(job_id).attempt == 1
        assert house.document(document).status == DocumentStatus.TRAINING

    async def test_a_straggler_undoes_nothing_of_its_successor(self, house: House) -> None:
        document, job_id = house.upload()
        successor = house.loop()

        async def overtaken() -> None:
            await house.later(expire_lease, job_id)()
            await house.later(jobs.reap)()
            assert await successor.run_once()
            raise BrokenDocument("the straggler's parser was killed meanwhile")

        house.ingestor.hooks = {Stage.PARSING: overtaken}
        await house.loop().run_once()
        assert (house.job(job_id).state, house.job(job_id).attempt) == (JobState.SUCCEEDED, 2)
        assert house.document(document).status == DocumentStatus.TRAINING
        assert len(house.passages(document)) == 1
        assert house.ingestor.indexed == {document.revision_id}
        assert len(house.training(document)) == 1

    async def test_a_straggler_of_a_deleted_document_cleans_up(self, house: House) -> None:
        document, job_id = house.upload()

        async def overtaken_and_deleted() -> None:
            await house.later(expire_lease, job_id)()
            await house.later(delete, document)()
            await house.later(jobs.reap)()

        house.ingestor.hooks = {"indexed": overtaken_and_deleted}
        await house.loop().run_once()
        assert house.job(job_id).state == JobState.CANCELLED
        assert house.nothing_left(document)

    async def test_a_dead_servers_job_is_taken_up_and_done_again(self, house: House) -> None:
        document, job_id = house.upload()
        with house.rows.write() as session:
            assert jobs.claim(session, JobKind.INGEST, "dead", 60) is not None
            expire_lease(session, job_id)
            jobs.reap(session)
        house.ingestor.indexed = {document.revision_id}
        await house.loop().run_once()
        assert (house.job(job_id).state, house.job(job_id).attempt) == (JobState.SUCCEEDED, 2)
        assert len(house.passages(document)) == 1

    async def test_a_newer_revision_waits_for_its_own_ingest(self, house: House) -> None:
        document, job_id = house.upload()
        house.ingestor.hooks = {
            Stage.EMBEDDING: house.later(add_revision, "acme", document.document_id, "rev_newer", 2),
        }
        await house.loop().run_once()
        assert house.job(job_id).state == JobState.SUCCEEDED
        assert house.document(document).status == DocumentStatus.INGESTING
        assert house.training(document) == []


class TestRun:
    async def test_a_notice_is_heard_at_once_and_shutdown_is_quiet(self, house: House) -> None:
        loop = house.loop(poll_seconds=60)
        running = asyncio.create_task(loop.run())
        await asyncio.sleep(0.1)
        document, _ = await house.upload_beside()
        loop.notify()
        await until(lambda: house.document(document).status == DocumentStatus.TRAINING)
        await stopped(running)

    async def test_without_a_notice_it_looks_by_itself(self, house: House) -> None:
        running = asyncio.create_task(house.loop(poll_seconds=0.05).run())
        await asyncio.sleep(0.1)
        document, _ = await house.upload_beside()
        await until(lambda: house.document(document).status == DocumentStatus.TRAINING)
        await stopped(running)

    async def test_shutdown_hands_the_job_back_and_the_next_start_ends_it(self, house: House) -> None:
        document, job_id = house.upload()
        house.ingestor.hooks = {"indexed": wait_forever}
        running = asyncio.create_task(house.loop().run())
        await until(lambda: not house.ingestor.hooks)
        await stopped(running)
        job = house.job(job_id)
        assert (job.state, job.lease_owner, job.max_attempts - job.attempt) == (JobState.QUEUED, None, 3)
        await house.loop().run_once()
        assert house.document(document).status == DocumentStatus.TRAINING
        assert len(house.passages(document)) == 1

    async def test_a_job_claimed_at_the_moment_of_shutdown_is_handed_back(self, house: House) -> None:
        _, job_id = house.upload()
        serving = asyncio.create_task(house.loop().run_once())
        await asyncio.sleep(0)
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving
        assert (house.job(job_id).state, house.job(job_id).lease_owner) == (JobState.QUEUED, None)

    async def test_shutdown_of_a_deleted_documents_ingest_cleans_up(self, house: House) -> None:
        document, job_id = house.upload()

        async def delete_and_wait() -> None:
            await house.later(delete, document)()
            running.cancel()
            await wait_forever()

        house.ingestor.hooks = {"indexed": delete_and_wait}
        running = asyncio.create_task(house.loop().run())
        with pytest.raises(asyncio.CancelledError):
            await running
        assert house.job(job_id).state == JobState.CANCELLED
        assert house.nothing_left(document)

    async def test_a_long_document_does_not_keep_a_short_one_waiting(self, house: House) -> None:
        house.upload(tenant="slow")
        house.ingestor.hooks = {Stage.PARSING: wait_forever}
        running = asyncio.create_task(house.loop(poll_seconds=0.05).run())
        await until(lambda: not house.ingestor.hooks)
        short, _ = await house.upload_beside()
        await until(lambda: house.document(short).status == DocumentStatus.TRAINING)
        await stopped(running)

    async def test_a_database_out_of_reach_ends_no_lane(self, house: House, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.ERROR)
        await house.later(rename, "jobs", "hidden")()
        running = asyncio.create_task(house.loop(poll_seconds=0.05).run())
        await until(lambda: "goes on after an error" in caplog.text)
        await house.later(rename, "hidden", "jobs")()
        document, _ = await house.upload_beside()
        await until(lambda: house.document(document).status == DocumentStatus.TRAINING)
        await stopped(running)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.02)


async def stopped(running: asyncio.Task[None]) -> None:
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
