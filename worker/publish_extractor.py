"""Publishing an extractor: an artefact that passed its gate becomes one of its owner's extractors, in one transaction, or leaves no trace.

It is not active yet, unless the request said so and its owner has none. Like modules, its bytes are moved inside the transaction.
"""

from __future__ import annotations

import logging
from pathlib import Path

from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.orm import Session

from server.db import activation, extractors, jobs, material
from server.db.session import SyncDatabase
from server.db.tables import Extractor, Job
from server.modules.artefact import COMPOSITION
from server.modules.manifest import ArtefactKind
from server.modules.store import ModuleStore
from server.storage.extractors import place_extractor
from server.storage.publication import staged, uploaded
from worker.events import Result
from worker.publish import announced

logger = logging.getLogger(__name__)


def publish_extractor(
    database: SyncDatabase, store: ModuleStore, job: Job, artefact: Path, result: Result, *, wearing: bool, max_attempts: int
) -> Job:
    """Publish the artefact of a running attempt and end its job: succeeded, or cancelled if asked to. The re-trainings that its activation
    queues, with `max_attempts` each, need no bell: the worker looks for another job now.

    Raises JobLost if the job belongs to another attempt, ValueError for an artefact that is not the one announced, OSError (also while
    an extractor with equal bytes is being deleted: a later attempt succeeds),
    SQLAlchemyError, ObjectStoreUnavailable.
    """
    described = announced(artefact, result, ArtefactKind.KNOWLEDGE_EXTRACTOR)
    if result.composition is None or not (artefact / COMPOSITION).is_file():
        raise ValueError("an extractor has a composition")
    owner: str = job.params["owner"]
    target = store.extractor_path(owner, result.composition)

    def named(manifest_sha256: str) -> bool:
        with database.read() as session:
            return extractors.in_use(session, owner, target.name, manifest_sha256)

    with staged(store.staging_extractor(owner), artefact) as copy, uploaded(store, copy, target, named):
        try:
            with database.write() as session:
                if jobs.hold(session, job.id, job.attempt).cancel_requested:
                    return jobs.cancelled(session, job.id, job.attempt)
                extractor = place_extractor(
                    session,
                    store,
                    copy,
                    owner=owner,
                    name=job.params.get("name"),
                    job_id=job.id,
                    lora_digest=result.digest,
                    composition_digest=result.composition,
                    gate=result.gate,
                )
                if described.start is not None:
                    material.inherit(session, job, described.start["composition"])
                if job.params.get("activate"):
                    _activate(session, extractor, wearing, max_attempts)
                logger.info("job %s: published extractor %s of %s", job.id, extractor.id, owner)
                return jobs.succeed(session, job.id, job.attempt)
        except BaseException:
            _discard(database, store, job, owner, target)
            raise


def _activate(session: Session, extractor: Extractor, wearing: bool, max_attempts: int) -> None:
    """Where the owner has no active one: a switch of what answers is for people to decide."""
    if any(other.active for other in extractors.lock(session, extractor.owner)):
        return
    try:
        with session.begin_nested():
            activation.switch(session, extractor.owner, extractor.id, wearing=wearing, max_attempts=max_attempts)
    except IntegrityError:  # the owner's first two, published at once
        logger.info("extractor %s is not activated: another one of its owner's came first", extractor.id)


def _discard(database: SyncDatabase, store: ModuleStore, job: Job, owner: str, target: Path) -> None:
    """The transaction failed: remove what it may have put in place, unless an extractor stands on those bytes."""
    try:
        with database.write() as session:
            extractors.lock(session, owner)
            if not extractors.in_use(session, owner, target.name):
                store.drop(target)
    except (SQLAlchemyError, OSError):
        logger.warning("job %s: an unpublished artefact may be left behind", job.id, exc_info=True)
