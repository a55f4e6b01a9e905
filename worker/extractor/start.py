"""The extractor that a training begins from: which one a job takes, and the proof that what is trained can begin from it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from server.engine.base_model import BaseModel
from server.engine.request import ArtefactRef
from server.errors import ArtefactRefused, InvalidInput, ModuleWrongBase
from server.modules.artefact import Artefact, read_manifest
from server.modules.manifest import Manifest
from server.modules.start import NONE_ACTIVE, OTHER_BASE, StartName, misfit, shape_of
from worker.extractor.recipe import ExtractorRecipe
from worker.training.worn import proven

logger = logging.getLogger(__name__)


def chosen_start(
    base: BaseModel,
    wanted: StartName | None,
    active: ArtefactRef | None,
    overrides: Mapping[str, Any],
    modules: Sequence[ArtefactRef],
) -> ArtefactRef | None:
    """What a job begins from. `wanted`: None takes `active` if it fits the base, what the recipe names (`overrides`), and the scope of the
    `modules` that are learned over, else nothing. Weights alone are learned over the active one, said or not.

    Raises InvalidInput for an active one that is wanted, and is not there or does not fit.
    """
    if wanted == "nothing":
        return None
    why = _unfit(base, active, overrides)
    if why is not None and (wanted == "active" or overrides.get("learn") == "weights"):
        raise InvalidInput(why)
    if why is None and wanted is None and "scope" not in overrides and any(active and each.scope != active.scope for each in modules):
        why = "the documents' modules are of another scope than the active extractor"
    if why is not None:
        logger.info("the training starts from nothing: %s", why)
        return None
    return active


def proven_start(base: BaseModel, start: ArtefactRef, recipe: ExtractorRecipe) -> Artefact:
    """Raises InvalidInput for a start of another base model, rank, alpha or scope than the recipe's, and what `read_artefact` raises."""
    try:
        found = proven(base, start)
    except ModuleWrongBase:
        raise InvalidInput(OTHER_BASE) from None
    if (why := misfit(shape_of(found.manifest), asdict(recipe))) is not None:
        raise InvalidInput(why)
    return found


def manifest_of(start: ArtefactRef | None) -> Manifest | None:
    """Raises what `read_manifest` raises."""
    return None if start is None else read_manifest(start)


def _unfit(base: BaseModel, active: ArtefactRef | None, overrides: Mapping[str, Any]) -> str | None:
    if active is None:
        return NONE_ACTIVE
    try:
        return misfit(shape_of(proven(base, active).manifest), overrides)
    except ModuleWrongBase:
        return OTHER_BASE
    except ArtefactRefused as error:
        return f"the active extractor's files cannot be used ({error.code}): activate another one, or start from nothing"
