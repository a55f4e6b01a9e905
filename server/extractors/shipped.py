"""The extractor that ships for the packaged base model: the system's first one, active, or by a setting for the operator to activate.

It is installed once. Whoever deactivates or deletes it is not overruled at the next start; a release's new one is installed beside the old.
"""

from __future__ import annotations

import logging
from contextlib import closing
from pathlib import Path
from typing import Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from server import audit
from server.db import activation, extractors
from server.db.extractors import SYSTEM_OWNER
from server.db.session import SyncDatabase
from server.db.tables import Audit
from server.engine.request import ArtefactRef
from server.errors import ObjectStoreUnavailable
from server.modules.described import described
from server.modules.manifest import ArtefactKind
from server.modules.shipped import SHIPPED, shipped_for
from server.modules.store import ModuleStore
from server.security import OPERATOR_TENANT
from server.settings import Settings
from server.storage.extractors import place_extractor
from server.storage.publication import staged, uploaded

logger = logging.getLogger(__name__)

_ACTION: Final = "install_extractor"


def install(settings: Settings, store: ModuleStore, base_fingerprint: str, shipped: Path = SHIPPED) -> None:
    """Install what ships for this base and was never installed here. What an object store or a disk refuses is tried at the next start:
    without an extractor everything is answered, too. Raises SQLAlchemyError. Slow: to be called on a thread."""
    if settings.shipped_extractor == "off":
        return
    try:
        with closing(SyncDatabase(settings.sql_url)) as database:
            for artefact in shipped_for(base_fingerprint, shipped):
                _install(database, store, artefact, settings)
    except (OSError, ValueError, ObjectStoreUnavailable):
        logger.warning("the extractor that ships for this base model is installed at the next start", exc_info=True)


def _install(database: SyncDatabase, store: ModuleStore, artefact: Path, settings: Settings) -> None:
    ref = described(artefact, ArtefactKind.KNOWLEDGE_EXTRACTOR)
    assert ref.composition is not None
    target = store.extractor_path(SYSTEM_OWNER, ref.composition)

    def named(manifest_sha256: str) -> bool:
        with database.read() as session:
            return extractors.in_use(session, SYSTEM_OWNER, target.name, manifest_sha256)

    with database.read() as session:
        if _was_installed(session, target.name):
            return
    staging = store.staging_extractor(SYSTEM_OWNER)
    with staged(staging, artefact) as copy, uploaded(store, copy, target, named), database.write() as session:
        _publish(session, store, copy, ref, artefact.name, settings)


def _publish(session: Session, store: ModuleStore, copy: Path, ref: ArtefactRef, name: str, settings: Settings) -> None:
    composition = str(ref.composition)
    first = not extractors.lock(session, SYSTEM_OWNER) and not _was_installed(session)
    active = first and settings.shipped_extractor == "active"
    if _was_installed(session, composition):  # by another process that started now
        return
    row = place_extractor(
        session,
        store,
        copy,
        owner=SYSTEM_OWNER,
        name=name,
        job_id=None,
        lora_digest=ref.digest,
        composition_digest=composition,
    )
    if active:
        activation.switch(session, SYSTEM_OWNER, row.id, wearing=settings.modules_wear_extractor, max_attempts=settings.max_attempts)
    audit.record(session, OPERATOR_TENANT, _ACTION, extractor=row.id, owner=SYSTEM_OWNER, composition=composition)
    logger.info("installed the extractor %s, which ships for this base model%s", name, "; it is active" if active else "")


def _was_installed(session: Session, composition: str | None = None) -> bool:
    """This one, or any."""
    found = select(Audit.id).where(Audit.tenant_id == OPERATOR_TENANT, Audit.action == _ACTION)
    if composition is not None:
        found = found.where(Audit.detail["composition"].as_string() == composition)
    return session.scalar(found.limit(1)) is not None
