"""An extractor's files into their place and its row beside them, within the caller's transaction."""

from __future__ import annotations

import errno
import hashlib
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from server.db import extractors
from server.db.extractors import NewExtractor
from server.db.tables import Extractor
from server.modules.artefact import MANIFEST
from server.modules.manifest import parse_manifest
from server.modules.store import ModuleStore


def place_extractor(
    session: Session,
    store: ModuleStore,
    copy: Path,
    *,
    owner: str,
    name: str | None,
    job_id: str | None,
    lora_digest: str,
    composition_digest: str,
    gate: dict[str, Any] | None = None,
) -> Extractor:
    """Move a staged copy to where its owner's extractors lie and insert its row, not active; without a `gate`, with the manifest's.

    Raises FileExistsError while an extractor with equal bytes is being deleted: a later attempt succeeds; OSError.
    """
    extractors.lock(session, owner)  # a deletion of equal bytes is not begun meanwhile
    if extractors.being_deleted(session, owner, composition_digest):
        raise FileExistsError(errno.EEXIST, "an extractor with equal bytes is being deleted")
    # Equal bytes may lie there already, with a manifest of their own: the row describes what lies there.
    data = (store.publish_extractor(copy, owner, composition_digest) / MANIFEST).read_bytes()
    manifest = parse_manifest(data)
    return extractors.insert_new(
        session,
        NewExtractor(
            owner=owner,
            name=name,
            job_id=job_id,
            lora_digest=lora_digest,
            composition_digest=composition_digest,
            manifest_sha256=hashlib.sha256(data).hexdigest(),
            base_fingerprint=manifest.base_fingerprint,
            scope=manifest.scope,
            gate=manifest.gate if gate is None else gate,
        ),
    )
