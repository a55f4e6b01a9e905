"""What an API process does for its cache of the object store: uploads what was published before, drops what others deleted."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from server.db import extractors, modules
from server.db.tables import Document, Extractor
from server.errors import DocumentNotFound, ExtractorUnavailable
from server.modules.cached_store import CachedStore
from server.parts import Parts
from server.transactions import reading

logger = logging.getLogger(__name__)

_PAUSE_SECONDS: Final = 60.0
_PUBLISHING_SECONDS: Final = 3600.0
"""An extractor lies in its place before its row is written."""
_AT_ONCE: Final = 500


async def keep_cache(parts: Parts, store: CachedStore) -> None:
    """For ever: one round now and one a minute."""
    while True:
        try:
            await forget_deleted(parts, store)
            await asyncio.to_thread(store.trim)
            await upload_missing(parts, store)
        except Exception:
            # A database or an object store out of reach must not end it.
            logger.exception("the care of the module cache goes on after an error")
        await asyncio.sleep(_PAUSE_SECONDS)


async def upload_missing(parts: Parts, store: CachedStore) -> None:
    """What was published before there was an object store, and has a row. Raises ObjectStoreUnavailable."""
    for directory in await asyncio.to_thread(store.artefacts):
        with contextlib.suppress(FileNotFoundError):
            if not store.is_marked(directory):
                await _upload(parts, store, directory)


async def _upload(parts: Parts, store: CachedStore, directory: Path) -> None:
    """If it is deleted meanwhile, by whomever, that may have come before its objects: they go again."""
    manifest_sha256 = hashlib.sha256((directory / "manifest.json").read_bytes()).hexdigest()
    if not await reading(parts.database, _named, directory, manifest_sha256):
        return
    try:
        await asyncio.to_thread(store.upload, directory, directory)
    finally:
        if not await reading(parts.database, _named, directory, manifest_sha256):
            await asyncio.to_thread(store.withdraw, directory, manifest_sha256)


async def forget_deleted(parts: Parts, store: CachedStore) -> None:
    """Drop from disk, memory and device what has no row any more, or one with a tombstone: another process deletes it, with its objects."""
    await _forget_documents(parts, store)
    await _forget_extractors(parts, store)


async def _forget_documents(parts: Parts, store: CachedStore) -> None:
    models = parts.models.peek()
    held = {} if models is None else _by_document(models.engine.residency())
    present = sorted(await asyncio.to_thread(store.documents) | held.keys())
    for tenant_id, document_id in await reading(parts.database, _without_row, present):
        logger.info("dropping what is cached of %s, which is deleted", document_id)
        await asyncio.to_thread(store.forget_document, tenant_id, document_id)
        if models is not None:
            for directory in held.get((tenant_id, document_id), ()):
                models.engine.evict(directory, DocumentNotFound("no such document"))
            models.engine.forget(tenant_id)


async def _forget_extractors(parts: Parts, store: CachedStore) -> None:
    models = parts.models.peek()
    held = set() if models is None else set(models.engine.residency())
    present = {directory for directory in held.union(await asyncio.to_thread(store.artefacts)) if directory.parts[-3:-2] == ("extractors",)}
    known = await reading(parts.database, _extractors)
    for directory in sorted(present):
        # What the engine holds had a row once: nobody asks it for what is still being published.
        if (directory.parent.name, directory.name) not in known and (directory in held or _old(directory)):
            await asyncio.to_thread(store.drop, directory)
            if models is not None:
                models.engine.evict(directory, ExtractorUnavailable("the extractor was deleted"))


def _by_document(directories: Iterable[Path]) -> dict[tuple[str, str], list[Path]]:
    """Of modules, …/tenants/<tenant>/documents/<document>/<digest>."""
    found: dict[tuple[str, str], list[Path]] = {}
    for directory in directories:
        if len(directory.parts) > 4 and directory.parts[-3] == "documents":
            found.setdefault((directory.parts[-4], directory.parts[-2]), []).append(directory)
    return found


def _without_row(session: Session, present: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    known: set[tuple[str, str]] = set()
    for some in (present[start : start + _AT_ONCE] for start in range(0, len(present), _AT_ONCE)):
        # tenant-free: the caches of all tenants are looked after, each pair under its own tenant
        rows = select(Document.tenant_id, Document.id).where(Document.id.in_([document_id for _, document_id in some]))
        known |= {(tenant_id, document_id) for tenant_id, document_id in session.execute(rows.where(Document.deleted_at.is_(None)))}
    return [pair for pair in present if pair not in known]


def _named(session: Session, directory: Path, manifest_sha256: str) -> bool:
    """Whether a row that is not deleted names it: …/tenants/<tenant>/documents/<document>/<digest> or …/extractors/<owner>/<digest>."""
    if directory.parts[-3] == "documents":
        return modules.in_live_use(session, directory.parts[-4], directory.parts[-2], directory.name, manifest_sha256)
    return extractors.in_use(session, directory.parts[-2], directory.name, manifest_sha256)


def _extractors(session: Session) -> set[tuple[str, str]]:
    rows = session.execute(select(Extractor.owner, Extractor.composition_digest).where(Extractor.deleted_at.is_(None)))
    return {(owner, composition) for owner, composition in rows}


def _old(directory: Path) -> bool:
    try:
        return time.time() - directory.stat().st_mtime > _PUBLISHING_SECONDS
    except FileNotFoundError:
        return False
