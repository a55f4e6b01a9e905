"""A database, blobs and an ingest loop over them, for tests that step into an ingest at any of its stages."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from sqlalchemy import select, update

from server.db import jobs
from server.db.blobs import BlobStore
from server.db.session import Database, SyncDatabase
from server.db.tables import Document, DocumentStatus, Job, JobKind, Passage
from server.jobs.ingest_loop import IngestLoop
from server.retrieval.ingest import Ingested, Report, Source, Stage, passage_id
from server.retrieval.types import Page, ParsedDocument, PassageText
from tests.support.rows import Uploaded, document_row, job_row, upload

LEASE = 60.0
"""Longer than any test: a lease that is to end is ended by hand."""
Hook = Callable[[], Awaitable[None]]


class FakeIngestor:
    """Runs through the stages and lets a test step in at any of them, or when everything is indexed."""

    def __init__(self) -> None:
        self.indexed: set[str] = set()
        self.hooks: dict[str, Hook] = {}

    async def ingest(self, source: Source, report: Report) -> Ingested:
        assert source.path.is_file()
        for stage in Stage:
            await report(stage, 0, 1)
            if stage == Stage.INDEXING:
                self.indexed.add(source.revision_id)
            await self._hook(stage)
        await self._hook("indexed")
        passage = PassageText(ordinal=0, text="thirty days", page=None, char_start=0, char_end=11, tokens=2)
        parsed = ParsedDocument(media_type="text/plain", pages=(Page(number=None, text="thirty days"),))
        return Ingested(parsed=parsed, passages={passage_id(source.revision_id, 0): passage}, tokens=2)

    async def forget(self, tenant_id: str, document_id: str, revision_id: str) -> None:
        self.indexed.discard(revision_id)

    async def _hook(self, name: str) -> None:
        if name in self.hooks:
            await self.hooks.pop(name)()


class House:
    """One document is uploaded on request."""

    def __init__(self, folder: Path, rows: SyncDatabase, database: Database) -> None:
        self.rows = rows
        self.blobs = BlobStore(folder / "blobs")
        self.ingestor = FakeIngestor()
        self.rings = 0
        self.database = database

    def loop(self, ingestor: Any = None, **options: Any) -> IngestLoop:
        parts: dict[str, Any] = {"database": self.database, "blobs": self.blobs, "ingestor": ingestor or self.ingestor}
        return IngestLoop(**parts, ring=self.ring, **{"lease_seconds": LEASE, "max_attempts": 3, **options})

    def ring(self) -> None:
        self.rings += 1

    def upload(self, text: str = "thirty days", tenant: str = "acme", **columns: Any) -> tuple[Uploaded, str]:
        """The document and the id of its ingest job."""
        with self.rows.write() as session:
            document = upload(session, tenant, DocumentStatus.INGESTING)
            if columns:
                session.execute(update(Document).where(Document.id == document.document_id).values(**columns))
            job = jobs.enqueue(session, **vars(document), kind=JobKind.INGEST, params={}, max_attempts=3)
            self.blobs.write_text(blob_of(document), text)
        return document, job.id

    async def upload_beside(self) -> tuple[Uploaded, str]:
        """While a loop runs: a write on its own thread would wait for a transaction that waits for the thread."""
        return await asyncio.to_thread(self.upload)

    def job(self, job_id: str) -> Job:
        with self.rows.read() as session:
            return job_row(session, job_id)

    def document(self, document: Uploaded) -> Document:
        with self.rows.read() as session:
            return document_row(session, document)

    def passages(self, document: Uploaded) -> list[Passage]:
        with self.rows.read() as session:
            return list(session.scalars(select(Passage).where(Passage.tenant_id == document.tenant_id)))

    def training(self, document: Uploaded) -> list[Job]:
        with self.rows.read() as session:
            return list(session.scalars(select(Job).where(Job.document_id == document.document_id, Job.kind == JobKind.TRAIN)))

    def later(self, step: Callable[..., Any], *arguments: Any) -> Hook:
        """A hook that does one thing to the database from outside the loop."""

        def write() -> None:
            with self.rows.write() as session:
                step(session, *arguments)

        async def hook() -> None:
            await asyncio.to_thread(write)

        return hook

    def has_text(self, document: Uploaded) -> bool:
        try:
            return bool(self.blobs.read_text(f"{blob_of(document)}.txt"))
        except FileNotFoundError:
            return False

    def nothing_left(self, document: Uploaded) -> bool:
        return not (self.ingestor.indexed or self.passages(document) or self.has_text(document))


def blob_of(document: Uploaded) -> str:
    return f"{document.tenant_id}/{document.document_id}/{document.revision_id}"
