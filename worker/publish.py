"""Publishing: an artefact that passed its gate becomes the document's next module version, in one transaction, or leaves no trace.

The artefact's bytes are moved to their place inside that transaction, under the document's lock: so an old attempt that is turned away
can never remove what a newer one, with the very same bytes, has just put there. Knows nothing of training or of tensors. Extractors are
published by `publish_extractor.py`.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from server.db import documents, extractors, jobs, modules
from server.db.modules import NewModule
from server.db.session import SyncDatabase
from server.db.tables import Document, DocumentStatus, Job
from server.errors import ExtractorUnavailable, Superseded
from server.modules.artefact import MANIFEST
from server.modules.manifest import ArtefactKind, Manifest, parse_manifest
from server.modules.store import ModuleStore
from server.storage.publication import staged, uploaded
from worker.events import Result

logger = logging.getLogger(__name__)


def publish(database: SyncDatabase, store: ModuleStore, job: Job, artefact: Path, result: Result) -> Job:
    """Publish the artefact of a running attempt and end its job: succeeded; cancelled if asked to or the document is deleted; failed with
    `superseded` if a newer revision has a module already; queued again if the extractor that the module wears is not there any more.

    Raises JobLost if the job belongs to another attempt, ValueError for a manifest that is not the one announced, OSError, SQLAlchemyError,
    ObjectStoreUnavailable.
    """
    described = announced(artefact, result, ArtefactKind.KNOWLEDGE_MODULE)
    target = store.path(job.tenant_id, job.subject.document_id, result.digest)

    def named(manifest_sha256: str) -> bool:
        with database.read() as session:
            return modules.in_live_use(session, job.tenant_id, job.subject.document_id, result.digest, manifest_sha256)

    with staged(store.staging(job.tenant_id, job.subject.document_id), artefact) as copy, uploaded(store, copy, target, named):
        try:
            with database.write() as session:
                ended = _turn_away(session, job, described.wears)
                return ended if ended is not None else _publish(session, store, job, copy, result)
        except BaseException:
            _discard(database, store, job, target)
            raise


def announced(artefact: Path, result: Result, kind: ArtefactKind) -> Manifest:
    """The artefact's manifest. ValueError for one that is not what the trainer said, or not of this kind."""
    data = (artefact / MANIFEST).read_bytes()
    if hashlib.sha256(data).hexdigest() != result.manifest_sha256:
        raise ValueError("the manifest is not the one that passed the gate")
    manifest = parse_manifest(data)
    if manifest.kind != kind:
        raise ValueError(f"the manifest is that of a {manifest.kind}")
    return manifest


def _turn_away(session: Session, job: Job, wears: str | None) -> Job | None:
    """End the job if it may not publish."""
    held = jobs.hold(session, job.id, job.attempt)
    document = documents.lock(session, job.tenant_id, job.subject.document_id)
    if held.cancel_requested or document is None:
        return jobs.cancelled(session, job.id, job.attempt)
    if _older_than_published(session, job, document):
        message = "a newer revision of the document already has a module"
        return jobs.fail(session, job.id, job.attempt, code=Superseded.code, message=message)
    if wears is not None and not extractors.stays_servable(session, job.tenant_id, wears):
        message = "the extractor that the module was trained with was deleted meanwhile; it is trained again"
        return jobs.retry(session, job.id, job.attempt, code=ExtractorUnavailable.code, message=message)
    return None


def _publish(session: Session, store: ModuleStore, job: Job, copy: Path, result: Result) -> Job:
    # Equal bytes may lie there already, with a manifest of their own: the row describes what lies there.
    manifest = (store.publish(copy, job.tenant_id, job.subject.document_id, result.digest) / MANIFEST).read_bytes()
    described = parse_manifest(manifest)
    module = modules.insert_version(
        session,
        NewModule(
            **vars(job.subject),
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
    revisions = (job.subject.revision_id, active.revision_id)
    mine, published = (modules.revision_number(session, job.tenant_id, revision) for revision in revisions)
    return mine < published


def _discard(database: SyncDatabase, store: ModuleStore, job: Job, target: Path) -> None:
    """The transaction failed: remove what it may have put in place, unless a version stands on those bytes."""
    try:
        with database.write() as session:
            document_id = job.subject.document_id
            documents.lock(session, job.tenant_id, document_id)
            if not modules.in_use(session, job.tenant_id, document_id, target.name):
                store.drop(target)
    except (SQLAlchemyError, OSError):
        logger.warning("job %s: an unpublished artefact may be left behind; it goes with its document", job.id, exc_info=True)
