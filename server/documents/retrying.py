"""What must be done again, and starting it: work that failed or was cancelled, vectors and a module that the models in use cannot use."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from server.db import documents
from server.db.tables import DocumentStatus, Job, JobKind, JobState, Module, ModuleState
from server.documents import repository
from server.documents.repository import Found
from server.documents.schemas import Document
from server.documents.service import enqueue, shown
from server.errors import KmserveError, NotRetryable
from server.parts import Parts
from server.transactions import reading, writing


@dataclass(frozen=True, kw_only=True)
class Standing:
    """A document as the models in use find it: how many of its passages their index has, whether its module's files are there."""

    fingerprint: str
    vectors: int
    files: bool

    def serves(self, module: Module) -> bool:
        return module.state == ModuleState.PUBLISHED and module.base_fingerprint == self.fingerprint and self.files


async def retry(parts: Parts, tenant_id: str, document_id: str) -> Document:
    """Start again what failed or was cancelled, what is not indexed for the embedding model in use, or a module that cannot answer.

    Raises DocumentNotFound, NotRetryable, and where that alone keeps it from being known what is to be done, Starting, IndexUnavailable.
    """
    standing = await _standing(parts, tenant_id, await reading(parts.database, repository.find, tenant_id, document_id))
    found = await writing(parts.database, _retry, tenant_id, document_id, standing, parts.settings.max_attempts)
    if found.job is not None and found.job.kind == JobKind.TRAIN:
        parts.tasks.start(asyncio.to_thread(parts.ring))
    parts.notify_ingest()
    return shown(found)


async def _standing(parts: Parts, tenant_id: str, found: Found) -> Standing | KmserveError:
    """Or why it cannot be known now."""
    try:
        models = parts.models.get()
        vectors = await models.index.count(tenant_id, found.document.id)
        files = found.module is not None and await asyncio.to_thread(_has_files, parts, tenant_id, found.document.id, found.module)
    except KmserveError as error:
        return error
    return Standing(fingerprint=models.base_fingerprint, vectors=vectors, files=files)


def _has_files(parts: Parts, tenant_id: str, document_id: str, module: Module) -> bool:
    return parts.modules.has(parts.modules.path(tenant_id, document_id, module.digest), module.manifest_sha256)


def _retry(session: Session, tenant_id: str, document_id: str, standing: Standing | KmserveError, max_attempts: int) -> Found:
    document = documents.lock(session, tenant_id, document_id) or documents.get_live(session, tenant_id, document_id)
    found = repository.find(session, tenant_id, document_id)
    passages = repository.passages_in(session, tenant_id, document.revision_id)
    kind = _due(found, passages, standing)
    status = DocumentStatus.INGESTING if kind == JobKind.INGEST else DocumentStatus.TRAINING
    documents.set_status(session, document_id, tenant_id, status)
    enqueue(session, document, kind, max_attempts, **_params(kind, found, standing))
    return repository.find(session, tenant_id, document_id)


def _due(found: Found, passages: int, standing: Standing | KmserveError) -> JobKind:
    """Raises NotRetryable, or the error that `standing` is where nothing else says what to do."""
    status = found.document.status
    if found.job is None or found.job.state in (JobState.QUEUED, JobState.RUNNING):
        raise NotRetryable("this document's job is still under way; wait for it, or cancel it first")
    if status in (DocumentStatus.FAILED, DocumentStatus.CANCELLED):
        return JobKind.INGEST
    if isinstance(standing, Standing) and standing.vectors < passages:
        return JobKind.INGEST
    if found.job.state in (JobState.FAILED, JobState.CANCELLED):
        return JobKind.TRAIN
    if isinstance(standing, KmserveError):
        raise standing
    if found.module is not None and not standing.serves(found.module):
        return JobKind.TRAIN
    raise NotRetryable("nothing of this document has failed or was cancelled, its passages are indexed and its module can answer")


def _params(kind: JobKind, found: Found, standing: Standing | KmserveError) -> dict[str, Any]:
    """An ingest for new vectors leaves a module alone that can answer: it was trained on the same text. A training is what it was."""
    current = found.module is not None and found.module.revision_id == found.document.revision_id
    keeps = current and found.module is not None and isinstance(standing, Standing) and standing.serves(found.module)
    if kind == JobKind.INGEST:
        return {"keep_module": True} if keeps else {}
    return _wanted(found.job)


def _wanted(job: Job | None) -> dict[str, Any]:
    """What its caller asked of a training that did not end well."""
    if job is None or job.kind != JobKind.TRAIN or job.state == JobState.SUCCEEDED:
        return {}
    return {name: job.params[name] for name in ("preset", "recipe", "seed") if name in job.params}
