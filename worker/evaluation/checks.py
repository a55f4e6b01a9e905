"""What can be known to be wrong before the first training: hours of work must not end at the last row for a word of the command line.

Trains nothing and answers nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from server.engine.base_model import BaseModel, adapted_layers
from server.engine.options import EngineOptions
from server.engine.request import ArtefactRef
from server.errors import ArtefactRefused
from server.modules.artefact import read_artefact
from worker.evaluation.apart import untrained, wanted_by
from worker.evaluation.artefacts import ArtefactUnavailable
from worker.evaluation.l2_compression import require_compressible
from worker.evaluation.prompts import prompts_of
from worker.evaluation.rows import Context, Line, Owner, Row
from worker.evaluation.runner import Setting
from worker.training.states import head_of

MOST_RANK = EngineOptions().max_rank
"""Of what answers wear."""


def require_possible(setting: Setting, lines: Sequence[Line]) -> None:
    """Raises ArtefactUnavailable for extractors, InvalidInput for recipes, ValueError for the rest; what an embedding model raises that
    cannot be loaded."""
    rows = list(dict.fromkeys(line.row for line in lines))
    _require_extractors(setting, rows)
    for row in rows:
        _require_modules(setting, row)
    _require_trainable(setting, lines)
    if any(row.context is Context.COMPRESSED for row in rows):
        require_compressible(setting.base)
    require_room(setting, lines)


def require_room(setting: Setting, lines: Sequence[Line]) -> None:
    """Raises ValueError for a prompt that the base cannot read with its answer. What is worn changes no prompt: of lines that differ in
    nothing else, the first stands for all."""
    kinds = {(line.row.context, line.passages): line for line in reversed(lines)}
    for number, line in enumerate(reversed(kinds.values())):
        setting.on_progress("checking prompts", number, len(kinds))
        for document in setting.documents:
            retrieve = setting.retriever(document)
            for question in document.questions:
                prompts_of(setting.base, line, document, question, retrieve)


def _require_extractors(setting: Setting, rows: Sequence[Row]) -> None:
    """Of those that modules wear in their training the rank is free."""
    for ref in dict.fromkeys(setting.artefacts.extractor(ones=row.ones) for row in rows if row.extractor):
        _require_wearable(setting.base, ref, MOST_RANK)
    if any(row.worn for row in rows):
        _require_wearable(setting.base, setting.artefacts.worn_extractor(), None)


def _require_wearable(base: BaseModel, ref: ArtefactRef, most_rank: int | None) -> None:
    shapes = {name: (layer.out_features, layer.in_features) for name, layer in adapted_layers(base.model).items()}
    try:
        read_artefact(ref, base.fingerprint, shapes, most_rank or max(map(min, shapes.values())))
    except ArtefactRefused as error:
        raise ArtefactUnavailable(f"{ref.directory} cannot be worn by {base.name}: {error.reason}") from None


def _require_modules(setting: Setting, row: Row) -> None:
    if row.owner is Owner.OTHER and len(setting.documents) < 2:
        raise ValueError(f"row {row.name} needs at least two documents: it wears another document's module")
    if row.objective is None:
        return
    recipe = setting.artefacts.recipe(row.objective, worn=row.worn)
    if recipe.rank > MOST_RANK:
        raise ValueError(
            f"the modules of row {row.name} would have rank {recipe.rank} and answers wear at most {MOST_RANK}: change --recipe"
        )
    if row.worn and (scope := setting.artefacts.worn_extractor().scope) != recipe.scope:
        raise ValueError(
            f"the modules of row {row.name} have scope {recipe.scope} and would wear an extractor of scope {scope} in their training: "
            "change the scope in --recipe, or name another extractor with --worn"
        )


def _require_trainable(setting: Setting, lines: Sequence[Line]) -> None:
    """What every training needs of the base and of the embedding model, where one is to come."""
    missing = untrained(wanted_by(lines, setting.documents, setting.artefacts.worn_extractor), setting.artefacts)
    if missing:
        head_of(setting.base.model)
        setting.retriever(missing[0].document)(missing[0].document.text[:100], 1)
