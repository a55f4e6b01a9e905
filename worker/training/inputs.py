"""What a job's leftovers were made from. Teacher states and checkpoints are kept for later attempts, and an attempt may be told otherwise
than the one before: another extractor is active, a document has a module by now. Such leftovers are of another training."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from server.engine.base_model import BaseModel
from server.engine.request import ArtefactRef
from worker.training.recipe import Schedule

logger = logging.getLogger(__name__)

FILE = "inputs.json"
EXAMPLES = "examples.sha256"
LEFTOVERS = ("teacher", "checkpoint", "checkpoint.old", "checkpoint.tmp")
TEXTS = "synthesis.jsonl"
"""Generated texts stay good under another recipe, and cost the most; not those that another base or generator wrote."""
_WRITTEN_BY = ("base", "writer")
_SAME_RESULT = ("micro_batch",)
"""Of a recipe: halved after an exhausted accelerator, and the training goes on."""


def keep_only_of(directory: Path, base: BaseModel, recipe: Schedule, seed: int, **others: Any) -> None:
    """Remove what another training left in a job's directory, and note what this one is made from. `others` are JSON values; `writer` among
    them names a generator that is not the base."""
    numbers = {name: value for name, value in asdict(recipe).items() if name not in _SAME_RESULT}
    inputs = {"base": base.fingerprint, "dtype": str(base.dtype), "recipe": numbers, "seed": seed, **others}
    before = _read(directory)
    if before == json.loads(json.dumps(inputs)):
        return
    rewritten = before is not None and any(before.get(name) != inputs.get(name) for name in _WRITTEN_BY)
    for name in [*LEFTOVERS, *([TEXTS] if rewritten else [])]:
        if (directory / name).exists():
            logger.warning("what an earlier attempt left in %s was made from something else and is made again", name)
            _remove(directory / name)
    directory.mkdir(parents=True, exist_ok=True)
    temporary = directory / f"{FILE}.tmp"
    temporary.write_text(json.dumps(inputs))
    temporary.replace(directory / FILE)


def keep_only_of_examples(directory: Path, examples: str) -> None:
    """Remove teacher states and checkpoints of other examples than those of this digest: passages among them may be others by now, or
    otherwise found. Where nothing is known of what is there, it stays."""
    note = directory / EXAMPLES
    if note.exists() and note.read_text() == examples:
        return
    for name in LEFTOVERS if note.exists() else ():
        if (directory / name).exists():
            logger.warning("what an earlier attempt left in %s was learned from other examples and is made again", name)
            _remove(directory / name)
    temporary = directory / f"{EXAMPLES}.tmp"
    temporary.write_text(examples)
    temporary.replace(note)


def _remove(leftover: Path) -> None:
    if leftover.is_dir():
        shutil.rmtree(leftover)
    else:
        leftover.unlink()


def named(ref: ArtefactRef | None) -> list[str | None] | None:
    """An artefact among inputs."""
    return None if ref is None else [ref.digest, ref.composition, ref.scope]


def _read(directory: Path) -> Mapping[str, Any] | None:
    try:
        found: Mapping[str, Any] = json.loads((directory / FILE).read_text())
    except (OSError, ValueError):
        return None
    return found
