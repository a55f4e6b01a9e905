"""Publishing: an artefact that passed its gate becomes the document's next module version, in one transaction, or leaves no trace.

The artefact's bytes are moved to their place inside that transaction, under the document's lock: so an old attempt that is turned away
can never remove what a newer one, with the very same bytes, has just put there. Knows nothing of training or of tensors.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import shutil
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from server.db import documents, jobs, modules
from server.db.modules import NewModule
from server.db.session import SyncDatabase
from server.db.tables import Document, DocumentStatus, Job
from server.errors import Superseded
from server.modules.manifest import parse_manifest
from server.modules.store import ModuleStore
from worker.events import Result

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"


def publish(database: SyncDatabase, store: ModuleStore, job: Job, artefact: Path, result: Result) -> Job:
    """Publish the artefact of a running attempt and end its job: succeeded; cancelled if asked to or the document is deleted; failed with
    `superseded` if a newer revision has a module already.

    Raises JobLost if the job belongs to another attempt, ValueError for a manifest that is not the one announced, OSError, SQLAlchemyError.
    """
    _check_manifest(artefact, result)
    staged = _stage(store, job, artefact)
    try:
        with database.write() as session:
            ended = _turn_away(session, job)
            return ended if ended is not None else _publish(session, store, job, staged, result)
    except BaseException:
        _discard(database, store, job, result.digest)
        raise
    finally:
        _clear(staged)


def _turn_away(session: Session, job: Job) -> Job | None:
    """End the job if it may not publish."""
    held = jobs.hold(session, job.id, job.attempt)
    document = documents.lock(session, job.tenant_id, job.document_id)
    if held.cancel_requested or document is None:
        return jobs.cancelled(session, job.id, job.attempt)
    if _older_than_published(session, job, document):
        message = "a newer revision of the document already has a module"
        return jobs.fail(session, job.id, job.attempt, code=Superseded.code, message=message)
    return None


def _publish(session: Session, store: ModuleStore, job: Job, staged: Path, result: Result) -> Job:
    # Equal bytes may lie there already, with a manifest of their own: the row describes what lies there.
    manifest = (store.publish(staged, job.tenant_id, job.document_id, result.digest) / MANIFEST).read_bytes()
    described = parse_manifest(manifest)
    module = modules.insert_version(
        session,
        NewModule(
            tenant_id=job.tenant_id,
            document_id=job.document_id,
            revision_id=job.revision_id,
            job_id=job.id,
            digest=result.digest,
            manifest_sha256=hashlib.sha256(manifest).hexdigest(),
            base_fingerprint=described.base_fingerprint,
            wears=described.wears,
            scope=described.scope,
            gate=result.gate,
        ),
    )
    modules.activate(session, module)
    documents.advance(session, job, DocumentStatus.READY)
    logger.info("job %s: published version %d of document %s", job.id, module.version, job.document_id)
    return jobs.succeed(session, job.id, job.attempt)


def _older_than_published(session: Session, job: Job, document: Document) -> bool:
    active = modules.active(session, job.tenant_id, document.id)
    if active is None:
        return False
    mine, published = (modules.revision_number(session, job.tenant_id, revision) for revision in (job.revision_id, active.revision_id))
    return mine < published


def _check_manifest(artefact: Path, result: Result) -> None:
    if hashlib.sha256((artefact / MANIFEST).read_bytes()).hexdigest() != result.manifest_sha256:
        raise ValueError("the manifest is not the one that passed the gate")


def _stage(store: ModuleStore, job: Job, artefact: Path) -> Path:
    """Copy the artefact to the store's filesystem: what is published is out of the trainer's reach."""
    staged = store.staging(job.tenant_id, job.document_id)
    try:
        shutil.copytree(artefact, staged, dirs_exist_ok=True)
    except BaseException:
        _clear(staged)
        raise
    return staged


def _clear(staged: Path) -> None:
    """Remove what was staged, and the document's directory if nothing else is in it: its deletion may have come before us."""
    shutil.rmtree(staged, ignore_errors=True)
    with contextlib.suppress(OSError):
        staged.parent.rmdir()


def _discard(database: SyncDatabase, store: ModuleStore, job: Job, digest: str) -> None:
    """The transaction failed: remove what it may have put in place, unless a version stands on those bytes."""
    try:
        with database.write() as session:
            documents.lock(session, job.tenant_id, job.document_id)
            if not modules.in_use(session, job.tenant_id, job.document_id, digest):
                store.delete(job.tenant_id, job.document_id, digest)
    except (SQLAlchemyError, OSError):
        logger.warning("job %s: an unpublished artefact may be left behind; it goes with its document", job.id, exc_info=True)
