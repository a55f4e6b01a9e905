"""Remembers fingerprints in the models' directory, so that a start does not hash every weight again.

A remembered one counts only while the files' sizes and times, the prompt's texts and the library that reads them are the same. It
spares work and proves nothing: whoever can write the models' directory can lie in it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import transformers

from server.engine.base_convert import Progress
from server.engine.fingerprint import ARCHITECTURE, fingerprint, prompt_texts
from server.modules.canonical import canonical_json
from server.modules.files import write_durably

_FOLDER = ".fingerprints"


def remembered_fingerprint(directory: Path, models_dir: Path, progress: Progress, compute: Callable[..., str] = fingerprint) -> str:
    """The fingerprint of the base model in `directory`, computed when anything changed since the last time."""
    note = models_dir / _FOLDER / f"{hashlib.sha256(str(directory).encode()).hexdigest()[:16]}.json"
    state = _state(directory)
    if (known := _known(note, state)) is not None:
        return known
    found = compute(directory, lambda done, total: progress("fingerprint", done, total))
    if _state(directory) == state:
        _remember(note, {"state": state, "fingerprint": found})
    return found


def _state(directory: Path) -> str:
    files = {}
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            status = path.stat()
            files[str(path.relative_to(directory))] = [status.st_size, status.st_mtime_ns, status.st_ino]
    seen = {"files": files, "prompt": prompt_texts(), "fields": ARCHITECTURE, "transformers": transformers.__version__}
    return hashlib.sha256(canonical_json(seen)).hexdigest()


def _known(note: Path, state: str) -> str | None:
    try:
        content: dict[str, Any] = json.loads(note.read_bytes())
        return str(content["fingerprint"]) if content["state"] == state else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _remember(note: Path, content: dict[str, str]) -> None:
    """Best effort: a read-only models' directory costs a hash at every start, no more."""
    with contextlib.suppress(OSError):
        note.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = note.with_name(f".{uuid.uuid4().hex}")
        write_durably(temporary, canonical_json(content))
        temporary.replace(note)
