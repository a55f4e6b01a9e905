"""Training a document's module again: with another preset, or with a recipe of the caller's."""

from __future__ import annotations

import asyncio
from typing import Any

from sqlalchemy.orm import Session

from server.db import documents
from server.db.tables import DocumentStatus, JobKind, JobState
from server.documents import repository
from server.documents.recipes import TrainModule
from server.documents.repository import Found
from server.documents.schemas import Document
from server.documents.service import enqueue, shown
from server.errors import InvalidInput, JobUnderWay, NotRetrievable
from server.parts import Parts
from server.transactions import writing


async def train(parts: Parts, tenant_id: str, document_id: str, wanted: TrainModule) -> Document:
    """Queue a training of the current revision. What answers now goes on answering until its module is published.

    Raises DocumentNotFound, InvalidInput, JobUnderWay, NotRetrievable.
    """
    rank = wanted.recipe.rank if wanted.recipe is not None else None
    if rank is not None and rank > parts.settings.max_rank:
        raise InvalidInput(f"this server takes modules of a rank of at most {parts.settings.max_rank} (KMSERVE_MAX_RANK)")
    found = await writing(parts.database, _train, tenant_id, document_id, wanted.params(), parts.settings.max_attempts)
    parts.tasks.start(asyncio.to_thread(parts.ring))
    return shown(found)


def _train(session: Session, tenant_id: str, document_id: str, params: dict[str, Any], max_attempts: int) -> Found:
    document = documents.lock(session, tenant_id, document_id) or documents.get_live(session, tenant_id, document_id)
    found = repository.find(session, tenant_id, document_id)
    if found.job is not None and found.job.state in (JobState.QUEUED, JobState.RUNNING):
        raise JobUnderWay("this document's job is still under way; wait for it, or cancel it first")
    if document.status not in (DocumentStatus.RETRIEVAL_READY, DocumentStatus.READY):
        raise NotRetrievable("this document was not indexed; `POST /documents/{id}/retry` starts that again")
    documents.set_status(session, document_id, tenant_id, DocumentStatus.TRAINING)
    enqueue(session, document, JobKind.TRAIN, max_attempts, **params)
    return repository.find(session, tenant_id, document_id)
