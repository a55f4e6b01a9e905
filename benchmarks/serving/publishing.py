"""Documents with published modules in a running server: uploaded and indexed by the API, published as a worker does, without a training."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Sequence

from kmserve_client.client import Client
from sqlalchemy import insert, update
from sqlalchemy.orm import Session

from server.db import jobs
from server.db.clock import db_now
from server.db.extractors import SYSTEM_OWNER
from server.db.session import SyncDatabase
from server.db.tables import Document, Extractor, Job, JobKind
from server.engine.request import ArtefactRef
from server.modules.store import ModuleStore
from server.settings import Settings
from worker.events import Result
from worker.publish import publish

_LEASE_SECONDS = 600.0


def publish_modules(settings: Settings, client: Client, modules: Sequence[ArtefactRef]) -> list[str]:
    """The ids of documents, the i-th with module i. Raises RuntimeError for one that could not be published."""
    store, database = ModuleStore(settings.root / "modules"), SyncDatabase(settings.sql_url)
    texts = [
        f"Document {number} of the benchmark. Its module is random, and nothing is asked of its text." for number in range(len(modules))
    ]
    documents = [client.upload(text=text, title=f"benchmark {number}", train="never").id for number, text in enumerate(texts)]
    try:
        for document_id, ref in zip(documents, modules, strict=True):
            client.wait(document_id, until="retrieval_ready")
            with database.write() as session:
                job = _claimed(session, document_id)
            gate = {"passed": True, "auto_mode": "retrieval"}
            result = Result(artefact="", digest=ref.digest, manifest_sha256=ref.manifest_sha256, gate=gate)
            ended = publish(database, store, job, ref.directory, result)
            if ended.state != "succeeded":
                raise RuntimeError(f"module of {document_id} was not published: {ended.state} {json.dumps(ended.error)}")
    finally:
        database.close()
    return documents


class PublishedExtractor:
    """The system's extractor, which every tenant's answers wear while it is active."""

    def __init__(self, settings: Settings, ref: ArtefactRef, base_fingerprint: str) -> None:
        assert ref.composition is not None
        store = ModuleStore(settings.root / "modules")
        shutil.copytree(ref.directory, store.extractor_path(SYSTEM_OWNER, ref.composition))
        self._id = f"ext_{uuid.uuid4().hex}"
        self._active = False
        self._database = SyncDatabase(settings.sql_url)
        row = {
            "id": self._id,
            "owner": SYSTEM_OWNER,
            "lora_digest": ref.digest,
            "composition_digest": ref.composition,
            "manifest_sha256": ref.manifest_sha256,
            "base_fingerprint": base_fingerprint,
            "scope": ref.scope,
            "active": False,
        }
        with self._database.write() as session:
            session.execute(insert(Extractor).values(created_at=db_now(), **row))

    def activate(self, active: bool) -> None:
        """From the next request on."""
        if active != self._active:
            with self._database.write() as session:
                session.execute(update(Extractor).where(Extractor.id == self._id).values(active=active))
            self._active = active

    def close(self) -> None:
        self._database.close()


def _claimed(session: Session, document_id: str) -> Job:
    """A training job of the document, in the hands of this process."""
    document = session.get_one(Document, document_id)
    jobs.enqueue(
        session,
        tenant_id=document.tenant_id,
        document_id=document.id,
        revision_id=document.revision_id,
        kind=JobKind.TRAIN,
        params={"preset": document.preset},
    )
    job = jobs.claim(session, JobKind.TRAIN, "benchmark", _LEASE_SECONDS)
    assert job is not None
    return job
