"""Around the transaction that publishes an artefact: a copy on the store's filesystem, and its objects where other machines find them."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from server.errors import ObjectStoreUnavailable
from server.modules.artefact import MANIFEST
from server.modules.store import ModuleStore

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def staged(directory: Path, artefact: Path) -> Iterator[Path]:
    """A copy of the artefact in a new directory of the store's: what is published is out of the trainer's reach.

    What was not published is gone afterwards, and the directory that it lay in if nothing else is in it: a deletion may have come first.
    """
    try:
        shutil.copytree(artefact, directory, dirs_exist_ok=True)
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        with contextlib.suppress(OSError):
            directory.parent.rmdir()


@contextlib.contextmanager
def uploaded(store: ModuleStore, copy: Path, target: Path, named: Callable[[str], bool]) -> Iterator[None]:
    """Around the transaction, for an upload may take long: the artefact, and what lies in its place already, are where other machines find
    them, and what this brought there goes again unless a row names it, by its manifest's hash. Raises ObjectStoreUnavailable."""
    # Nobody else writes the copy's objects: no attempt has the manifest of another.
    put = frozenset({hashlib.sha256((copy / MANIFEST).read_bytes()).hexdigest()})
    try:
        put |= store.upload(copy, target)
        yield
    finally:
        try:
            for manifest_sha256 in put:
                if not named(manifest_sha256):
                    store.withdraw(target, manifest_sha256)
            store.trim()
        except (SQLAlchemyError, ObjectStoreUnavailable, OSError):
            logger.warning("objects that no row names may be left behind; they go with their document", exc_info=True)
