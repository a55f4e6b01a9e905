"""What a request says of the start of its training, checked before there is a job: the trainer checks again, whatever is active by then."""

from __future__ import annotations

import asyncio
from typing import Any

from server.db import extractors
from server.db.tables import Extractor
from server.engine.request import ArtefactRef, Scope
from server.errors import ArtefactRefused, InvalidInput
from server.extractors.schemas import TrainFields
from server.modules.artefact import read_manifest
from server.modules.start import NONE_ACTIVE, OTHER_BASE, misfit, shape_of
from server.modules.store import ModuleStore
from server.parts import Parts
from server.transactions import reading


async def check_start(parts: Parts, owner: str, fields: TrainFields) -> None:
    """Raises InvalidInput for an active extractor that is to be started from, and is not there or does not fit. What cannot be known here,
    with the base model not loaded yet or the extractor's files elsewhere, is left to the job."""
    if not fields.starts_from_active:
        return
    active = await reading(parts.database, extractors.active, owner)
    if active is None:
        raise InvalidInput(NONE_ACTIVE)
    models = parts.models.peek()
    if models is not None and models.base_fingerprint != active.base_fingerprint:
        raise InvalidInput(OTHER_BASE)
    shape = await asyncio.to_thread(_known_shape, parts.modules, active)
    recipe = {} if fields.recipe is None else fields.recipe.changed()
    if (why := misfit(shape, recipe)) is not None:
        raise InvalidInput(why)


def _known_shape(store: ModuleStore, extractor: Extractor) -> dict[str, Any]:
    ref = ArtefactRef(
        digest=extractor.lora_digest,
        manifest_sha256=extractor.manifest_sha256,
        directory=store.extractor_path(extractor.owner, extractor.composition_digest),
        scope=Scope(extractor.scope),
        composition=extractor.composition_digest,
    )
    try:
        return shape_of(read_manifest(ref))
    except (ArtefactRefused, OSError):
        return {"scope": extractor.scope}
