"""The API in one process for tests: real routes, SQLite and blobs; fake engine, embedder, index and bell; keys of two tenants.

async def test_...(api: Api) -> None:
    document = await api.uploaded("Staff get 31 days.")
    await api.index(document["id"], ["Staff get 31 days."])
    answer = await api.client.post("/ask", json={...})
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from sqlalchemy import select
from sqlalchemy.orm import Session

from server.api_keys import repository as keys_repository
from server.api_keys.keys import KeyMaker
from server.app import create_app
from server.asks.prompting import Prompter
from server.db import documents, jobs, modules
from server.db.blobs import BlobStore
from server.db.modules import NewModule
from server.db.session import Database, SyncDatabase
from server.db.tables import Document, DocumentStatus, Job, JobKind, Module, Revision
from server.health.service import Doctor
from server.jobs import ingest_records
from server.modules.store import ModuleStore
from server.parts import Loading, Models, Parts
from server.retrieval.ingest import Ingested, passage_id
from server.retrieval.types import Page, ParsedDocument, PassageText, Point
from server.settings import Settings
from server.transactions import reading, writing
from tests.support.byte_tokenizer import byte_tokenizer
from tests.support.databases import migrated_bytes
from tests.support.embeddings import FakeEmbedder
from tests.support.fakes import Counter, FakeEngine, FakeIndex

ACME = "acme"
GLOBEX = "globex"
FINGERPRINT = "f" * 64
SECRET = b"a secret of the tests"
CONTEXT = 2048
ALL_SCOPES = ("ask", "documents:read", "documents:write", "evaluate")
OPEN_BOOK = {"auto_mode": "open_book"}
KEYS = {tenant: KeyMaker(SECRET).new() for tenant in (ACME, GLOBEX)}


@dataclass(frozen=True, kw_only=True)
class Api:
    """`client` calls as tenant acme with every scope but admin; `stranger` as tenant globex."""

    app: FastAPI
    parts: Parts
    engine: FakeEngine
    index_fake: FakeIndex
    ring: Counter
    client: httpx2.AsyncClient
    stranger: httpx2.AsyncClient

    async def key(self, *scopes: str, tenant: str = ACME, expires_at: float | None = None) -> str:
        new = self.parts.keys.new()
        await writing(self.parts.database, keys_repository.ensure_tenant, tenant)
        row = {"tenant_id": tenant, "name": "test", "prefix": new.prefix, "key_hash": new.hash}
        await writing(self.parts.database, keys_repository.add, **row, scopes=list(scopes), expires_at=expires_at)
        return new.text

    async def client_with(self, *scopes: str, tenant: str = ACME) -> httpx2.AsyncClient:
        return client_of(self.app, await self.key(*scopes, tenant=tenant))

    async def uploaded(
        self, text: str = "Staff get 31 days of leave.", *, client: httpx2.AsyncClient | None = None, **fields: Any
    ) -> dict[str, Any]:
        response = await (client or self.client).post("/documents", json={"text": text, **fields})
        assert response.status_code in (200, 202), response.text
        document: dict[str, Any] = response.json()
        return document

    async def index(self, document_id: str, texts: Sequence[str], *, tenant: str = ACME) -> list[str]:
        """Ingest as the loop would, with these passages; their ids."""
        job = await writing(self.parts.database, jobs.claim, JobKind.INGEST, "test", 60.0)
        assert job is not None
        assert job.document_id == document_id, "another document waits for its ingest"
        ingested = _ingested(job, texts)
        vectors = FakeEmbedder().encode(texts)
        points = [Point(passage_id=name, vector=vector) for name, vector in zip(ingested.passages, vectors, strict=True)]
        await self.index_fake.upsert(tenant, document_id, job.subject.revision_id, points)
        revision = await reading(self.parts.database, _revision, tenant, job.subject.revision_id)
        self.parts.blobs.write_text(f"{revision.blob}.txt", ingested.parsed.text)
        await writing(self.parts.database, ingest_records.finish, job, ingested, 5)
        return list(ingested.passages)

    async def train(self, document_id: str, *, tenant: str = ACME, gate: dict[str, Any] | None = None, **values: Any) -> str:
        """Train as a worker would, up to a published module that has no files; its digest."""
        job = await writing(self.parts.database, jobs.claim, JobKind.TRAIN, "test", 60.0)
        assert job is not None
        assert job.document_id == document_id, "another document waits for its training"
        return await writing(self.parts.database, _publish, job, gate or {}, values)

    async def fail(self, kind: JobKind, code: str) -> None:
        job = await writing(self.parts.database, jobs.claim, kind, "test", 60.0)
        assert job is not None
        await writing(self.parts.database, jobs.fail, job.id, job.attempt, code=code, message="because")

    async def sql(self, work: Callable[[Session], Any]) -> Any:
        """Run something over a session, in a transaction of its own."""
        return await writing(self.parts.database, work)


def client_of(app: FastAPI, key: str | None) -> httpx2.AsyncClient:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://test", headers=headers)


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database of the newest schema with the two tenants' keys, to be copied."""
    file = tmp_path_factory.mktemp("migrated") / "empty.db"
    file.write_bytes(migrated_bytes())
    seed(f"sqlite:///{file}")
    return file


@pytest.fixture
def settings(tmp_path: Path, migrated_file: Path) -> Settings:
    """Every test has the same database file, made anew: so SQLAlchemy compiles its statements once for all of them."""
    file = migrated_file.with_name("current.db")
    for name in (file.name, f"{file.name}-wal", f"{file.name}-shm"):
        left = file.with_name(name)
        left.rmdir() if left.is_dir() else left.unlink(missing_ok=True)
    file.write_bytes(migrated_file.read_bytes())
    return Settings(data_dir=tmp_path, database_url=f"sqlite:///{file}", max_upload_bytes=64 * 1024)


def seed(url: str) -> None:
    """The tenants' keys that `Api.client` and `Api.stranger` call with."""
    database = SyncDatabase(url)
    with database.write() as session:
        for tenant, new in KEYS.items():
            keys_repository.ensure_tenant(session, tenant)
            named = {"tenant_id": tenant, "name": "test"}
            keys_repository.add(session, **named, prefix=new.prefix, key_hash=new.hash, scopes=ALL_SCOPES, expires_at=None)
    database.close()


@pytest.fixture
async def api(settings: Settings) -> AsyncIterator[Api]:
    async with running_api(settings) as running:
        yield running


@asynccontextmanager
async def running_api(settings: Settings) -> AsyncIterator[Api]:
    """Over a migrated and seeded database."""
    engine, index, ring = FakeEngine(), FakeIndex(), Counter()
    parts = fake_parts(settings, engine, index, ring)
    app = _application()
    app.state.parts, app.state.doctor = parts, Doctor()
    async with client_of(app, KEYS[ACME].text) as client, client_of(app, KEYS[GLOBEX].text) as stranger:
        yield Api(app=app, parts=parts, engine=engine, index_fake=index, ring=ring, client=client, stranger=stranger)
    await parts.tasks.finish()
    await parts.database.close()


@cache
def _application() -> FastAPI:
    """One for all tests, for its routes take a while to be worked out; its parts are put in by hand, so its lifespan does not run."""
    return create_app(Settings())


def fake_parts(settings: Settings, engine: FakeEngine, index: FakeIndex, ring: Counter) -> Parts:
    models = Models(
        engine=engine,
        prompter=Prompter(byte_tokenizer(), CONTEXT),
        base_name="tiny",
        base_fingerprint=FINGERPRINT,
        embedding=FakeEmbedder(),
        index=index,
        notify_ingest=Counter(),
    )
    return Parts(
        settings=settings,
        database=_database(settings.sql_url),
        blobs=BlobStore(settings.root / "blobs"),
        modules=ModuleStore(settings.root / "modules"),
        keys=KeyMaker(SECRET),
        models=Loading(models),
        ring=ring,
    )


@cache
def _database(url: str) -> Database:
    return Database(url)


def document_row(tenant: str, document_id: str) -> Callable[[Session], Document | None]:
    """Tombstoned or not."""
    return lambda session: session.scalars(select(Document).where(Document.id == document_id, Document.tenant_id == tenant)).one_or_none()


def _ingested(job: Job, texts: Sequence[str]) -> Ingested:
    passages: dict[str, PassageText] = {}
    offset = 0
    for ordinal, text in enumerate(texts):
        span = {"char_start": offset, "char_end": offset + len(text)}
        passages[passage_id(job.subject.revision_id, ordinal)] = PassageText(
            ordinal=ordinal, text=text, page=ordinal + 1, tokens=len(text), **span
        )
        offset += len(text) + 2
    pages = tuple(Page(number=number + 1, text=text) for number, text in enumerate(texts))
    return Ingested(parsed=ParsedDocument(media_type="text/plain", pages=pages), passages=passages, tokens=offset)


def _publish(session: Session, job: Job, gate: dict[str, Any], values: dict[str, Any]) -> str:
    digest = hashlib.sha256(uuid.uuid4().bytes).hexdigest()
    described = {"manifest_sha256": "e" * 64, "base_fingerprint": FINGERPRINT, "wears": None, "scope": "all", "gate": gate, **values}
    owner: dict[str, Any] = {"tenant_id": job.tenant_id, "document_id": job.document_id, "revision_id": job.revision_id, "job_id": job.id}
    module: Module = modules.insert_version(session, NewModule(**owner, digest=digest, **described))
    modules.activate(session, module)
    documents.advance(session, job, DocumentStatus.READY)
    jobs.succeed(session, job.id, job.attempt)
    return digest


def _revision(session: Session, tenant: str, revision_id: str) -> Revision:
    return session.scalars(select(Revision).where(Revision.id == revision_id, Revision.tenant_id == tenant)).one()
