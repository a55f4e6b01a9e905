"""Deleting a document: the tombstone first, so that it is gone for every caller, then all that was made of it, then its rows.

    tombstone + cancel (one transaction) -> vectors -> blobs -> modules -> leftovers -> engine's tiers -> passages -> rows

A row with a tombstone means "not finished": the sweep, at the start and on a timer, does it again until nothing holds on to the document
any more (a crash, an index out of reach, a training that had yet to stop and may have written meanwhile). Each step may be repeated.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from contextlib import suppress
from dataclasses import dataclass

import sqlalchemy
from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from server import audit
from server.db import documents, material
from server.db.tables import Document, Job, JobKind, JobState, Module, Passage, Revision
from server.documents import idempotency
from server.documents.schemas import Receipt, Removed, TrainedExtractor
from server.errors import DocumentNotFound, KmserveError, ObjectStoreUnavailable
from server.parts import Parts
from server.transactions import overwrite_deleted, reading, writing

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Doomed:
    """A document under its tombstone, and what its rows say there is of it. `learning`: jobs of extractors that learn from it;
    `extractors`: those that have."""

    tenant_id: str
    document_id: str
    deleted_at: float
    removed: Removed
    learning: tuple[str, ...]
    extractors: tuple[TrainedExtractor, ...]


async def delete(parts: Parts, tenant_id: str, document_id: str) -> Receipt:
    """Raises DocumentNotFound."""
    doomed = await writing(parts.database, _condemn, tenant_id, document_id)
    complete = False
    with suppress(ObjectStoreUnavailable):
        complete = await _erase(parts, doomed)
    return Receipt(
        document_id=document_id,
        deleted_at=doomed.deleted_at,
        complete=complete,
        removed=doomed.removed,
        extractors=list(doomed.extractors),
    )


async def sweep(parts: Parts) -> None:
    """Go on with every deletion that is not finished. Raises ObjectStoreUnavailable at the first that finds the object store away, for
    each one more would wait as long as its patience lasts."""
    for doomed in await reading(parts.database, _condemned):
        await _erase(parts, doomed)


async def _erase(parts: Parts, doomed: Doomed) -> bool:
    """Whether nothing is left. The rows stay until then, and with them the memory that there is something to do. Raises
    ObjectStoreUnavailable when all that needs no object store is done."""
    try:
        without_vectors = await _erase_vectors(parts, doomed)
        away = await asyncio.to_thread(_erase_files, parts, doomed)
        _evict(parts, doomed)
        complete = await writing(parts.database, _erase_rows, doomed, without_vectors and away is None)
        await overwrite_deleted(parts.database)
    except (OSError, SQLAlchemyError):
        logger.warning("the deletion of %s goes on later", doomed.document_id, exc_info=True)
        return False
    if away is not None:
        raise away
    return complete


async def _erase_vectors(parts: Parts, doomed: Doomed) -> bool:
    """False while the index is not there: the rest does not wait for it."""
    try:
        await parts.models.get().index.delete_document(doomed.tenant_id, doomed.document_id)
    except KmserveError as error:
        logger.warning("the vectors of %s are deleted later: %s", doomed.document_id, error.code)
        return False
    return True


def _erase_files(parts: Parts, doomed: Doomed) -> ObjectStoreUnavailable | None:
    """What the object store says while it is not there."""
    parts.blobs.delete_prefix(f"{doomed.tenant_id}/{doomed.document_id}")
    away = _erase_modules(parts, doomed)
    work = parts.settings.root / "work" / doomed.tenant_id
    for leftovers in (work / doomed.document_id, *(work / "extractors" / job_id for job_id in doomed.learning)):
        shutil.rmtree(leftovers, ignore_errors=True)
    return away


def _erase_modules(parts: Parts, doomed: Doomed) -> ObjectStoreUnavailable | None:
    try:
        parts.modules.delete_document(doomed.tenant_id, doomed.document_id)
    except ObjectStoreUnavailable as error:
        logger.warning("the objects of %s are deleted later: %s", doomed.document_id, error.code)
        return error
    return None


def _evict(parts: Parts, doomed: Doomed) -> None:
    if (models := parts.models.peek()) is not None:
        for digest in doomed.removed.modules:
            path = parts.modules.path(doomed.tenant_id, doomed.document_id, digest)
            models.engine.evict(path, DocumentNotFound("no such document"))
        models.engine.forget(doomed.tenant_id)


def _condemn(session: Session, tenant_id: str, document_id: str) -> Doomed:
    documents.tombstone(session, tenant_id, document_id)
    idempotency.forget_document(session, tenant_id, document_id)
    audit.record(session, tenant_id, "delete", document_id=document_id)
    deleted_at = select(Document.deleted_at).where(Document.id == document_id, Document.tenant_id == tenant_id)
    return _doomed(session, tenant_id, document_id, session.scalars(deleted_at).one() or 0.0)


def _condemned(session: Session) -> list[Doomed]:
    # tenant-free: the sweep finishes deletions of every tenant, each under its own tenant
    dead = select(Document.tenant_id, Document.id, Document.deleted_at).where(Document.deleted_at.is_not(None))
    return [_doomed(session, tenant_id, document_id, at or 0.0) for tenant_id, document_id, at in session.execute(dead)]


def _doomed(session: Session, tenant_id: str, document_id: str, deleted_at: float) -> Doomed:
    passages = select(func.count()).select_from(Passage).where(Passage.tenant_id == tenant_id, Passage.document_id == document_id)
    revisions = select(func.count()).select_from(Revision).where(Revision.tenant_id == tenant_id, Revision.document_id == document_id)
    digests = select(Module.digest).where(Module.tenant_id == tenant_id, Module.document_id == document_id).distinct()
    ended = select(func.count()).select_from(Job).where(Job.tenant_id == tenant_id, Job.document_id == document_id)
    removed = Removed(
        passages=session.scalar(passages) or 0,
        revisions=session.scalar(revisions) or 0,
        modules=list(session.scalars(digests.order_by(Module.digest))),
        jobs=session.scalar(ended) or 0,
    )
    learning = select(Job.id).where(Job.tenant_id == tenant_id, Job.kind == JobKind.EXTRACTOR, material.concerns(tenant_id, document_id))
    trained = material.trained_on(session, tenant_id, document_id)
    return Doomed(
        tenant_id=tenant_id,
        document_id=document_id,
        deleted_at=deleted_at,
        removed=removed,
        learning=tuple(session.scalars(learning)),
        extractors=tuple(TrainedExtractor.model_validate(extractor) for extractor in trained),
    )


def _erase_rows(session: Session, doomed: Doomed, nothing_else: bool) -> bool:
    """Passages at once; the rest when nothing else is left and no job runs any more, for a running one may still write files."""
    tenant_id, document_id = doomed.tenant_id, doomed.document_id
    session.execute(sqlalchemy.delete(Passage).where(Passage.tenant_id == tenant_id, Passage.document_id == document_id))
    running = select(Job.id).where(Job.tenant_id == tenant_id, material.concerns(tenant_id, document_id), Job.state == JobState.RUNNING)
    if not nothing_else or session.scalar(running.limit(1)) is not None:
        return False
    session.execute(sqlalchemy.delete(Module).where(Module.tenant_id == tenant_id, Module.document_id == document_id))
    session.execute(sqlalchemy.delete(Job).where(Job.tenant_id == tenant_id, Job.document_id == document_id))
    session.execute(sqlalchemy.delete(Revision).where(Revision.tenant_id == tenant_id, Revision.document_id == document_id))
    session.execute(sqlalchemy.delete(Document).where(Document.tenant_id == tenant_id, Document.id == document_id))
    return True
