"""What the first start makes and every start checks: data directory, secret, the tenant `default` and its admin key."""

from __future__ import annotations

import logging
import os
import secrets
from pathlib import Path
from typing import Final

from sqlalchemy.orm import Session

from server.api_keys import repository
from server.api_keys.keys import KeyMaker, prefix_of
from server.security import OPERATOR_TENANT, KeyScope
from server.settings import Settings

logger = logging.getLogger(__name__)

ADMIN_KEY: Final = "admin.key"
SECRET_KEY: Final = "secret.key"


def make_root(root: Path) -> None:
    """For its owner alone: it holds documents, keys and pickles."""
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    root.chmod(0o700)


def secret_of(settings: Settings) -> bytes:
    """The configured secret, else in development the one in the data directory, made at the first start."""
    if settings.secret_key is not None:
        return settings.secret_key.get_secret_value().encode()
    path = settings.root / SECRET_KEY
    if not path.exists():
        _write_private(path, secrets.token_hex(32))
    return path.read_text().strip().encode()


def ensure_admin_key(session: Session, keys: KeyMaker, root: Path) -> None:
    """Make an admin key of the operator if there is none that works, and write it to a file for its owner alone.

    The file is written first: a key that nobody has been told is worth nothing.
    """
    repository.ensure_tenant(session, OPERATOR_TENANT)
    path = root / ADMIN_KEY
    admins = [row for row in repository.usable_of(session, OPERATOR_TENANT) if KeyScope.ADMIN in row.scopes]
    if admins and not _outlived_its_secret(session, keys, path):
        return
    new = keys.new()
    _write_private(path, new.text)
    repository.add(session, tenant_id=OPERATOR_TENANT, name="first admin", prefix=new.prefix, key_hash=new.hash, scopes=[KeyScope.ADMIN])
    logger.warning("an admin key was written to %s; make keys for others with it, then keep it away", path)


def _outlived_its_secret(session: Session, keys: KeyMaker, path: Path) -> bool:
    """Whether the key in the file is one of ours that the present secret does not prove: then none is proven any more."""
    text = path.read_text().strip() if path.exists() else ""
    prefix = prefix_of(text)
    row = repository.usable(session, prefix) if prefix else None
    return row is not None and not keys.proves(text, row.hash)


def _write_private(path: Path, text: str) -> None:
    """Whole or not at all, mode 0600 from the first byte."""
    unseen = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with os.fdopen(os.open(unseen, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(f"{text}\n")
        file.flush()
        os.fsync(file.fileno())
    unseen.replace(path)
