"""Deleting an extractor: the tombstone first, so that nobody is served with it any more, then its weights, then its row.

A row with a tombstone means "not finished": the sweep, at the start and on a timer, goes on where a crash or a store out of reach
interrupted. Each step may be repeated.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from server import audit
from server.db import extractors
from server.db.extractors import SYSTEM_OWNER
from server.db.tables import Extractor
from server.errors import ExtractorInUse, ExtractorUnavailable, KmserveError, ObjectStoreUnavailable
from server.extractors.service import changeable
from server.parts import Parts
from server.security import Caller
from server.transactions import reading, writing

logger = logging.getLogger(__name__)


async def delete(parts: Parts, caller: Caller, extractor_id: str) -> None:
    """Raises ExtractorNotFound, Forbidden, ExtractorInUse."""
    doomed = await writing(parts.database, _condemn, caller, extractor_id)
    with suppress(ObjectStoreUnavailable):
        await _erase(parts, doomed)


async def sweep(parts: Parts) -> None:
    """Go on with every deletion that is not finished. Raises ObjectStoreUnavailable at the first that finds the object store away."""
    for doomed in await reading(parts.database, _condemned):
        await _erase(parts, doomed)


async def _erase(parts: Parts, doomed: Extractor) -> None:
    """Raises ObjectStoreUnavailable when all that needs no object store is done."""
    owner, composition = doomed.owner, doomed.composition_digest
    try:
        if not await reading(parts.database, extractors.in_use, owner, composition):
            try:
                await asyncio.to_thread(parts.modules.delete_extractor, owner, composition, doomed.manifest_sha256)
            finally:
                _evict(parts, owner, composition)
        await writing(parts.database, extractors.remove, doomed)
    except ObjectStoreUnavailable as error:
        logger.warning("the objects of %s are deleted later: %s", doomed.id, error.code)
        raise
    except (OSError, SQLAlchemyError, KmserveError):
        logger.warning("the deletion of %s goes on later", doomed.id, exc_info=True)


def _evict(parts: Parts, owner: str, composition: str) -> None:
    if (models := parts.models.peek()) is not None:
        gone = ExtractorUnavailable("the extractor was deleted; ask again")
        models.engine.evict(parts.modules.extractor_path(owner, composition), gone)


def _condemn(session: Session, caller: Caller, extractor_id: str) -> Extractor:
    owner = changeable(session, caller, extractor_id).extractor.owner
    held = extractors.lock(session, owner)
    extractor = changeable(session, caller, extractor_id).extractor
    if extractor.active:
        raise ExtractorInUse("the extractor is active; activate another one, or deactivate it first")
    lora = extractor.lora_digest
    worn = extractors.worn_by_anyone(session, lora) if owner == SYSTEM_OWNER else extractors.worn_by(session, owner, lora)
    others = [other for other in held if other.id != extractor.id and other.lora_digest == lora]
    if worn and not others:
        raise ExtractorInUse(f"{worn} documents are answered by modules that wear this extractor; wait until they are trained again")
    audit.record(session, caller.tenant, "delete_extractor", extractor=extractor_id, owner=owner)
    return extractors.tombstone(session, extractor)


def _condemned(session: Session) -> list[Extractor]:
    return list(session.scalars(select(Extractor).where(Extractor.deleted_at.is_not(None)).order_by(Extractor.id)))
