"""A job's directory, `work/<tenant>/<document>/<job>`, of an extractor's `work/<tenant>/extractors/<job>`: what it is told, what its
attempts leave behind, and its removal.

It holds the document's text, synthetic text and checkpoints, so it is for this user only and goes when the job ends; a job that is
queued again finds it. Knows nothing of what the trainer writes there.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from server.db.tables import Job

SPEC = "spec.json"
LOG = "trainer.log"
OF_EXTRACTORS = "extractors"
"""No document has this id."""


class Workspace:
    def __init__(self, root: Path, job: Job) -> None:
        self.directory = _work(root) / job.tenant_id / (job.document_id or OF_EXTRACTORS) / job.id
        self._attempt = self.directory / f"attempt-{job.attempt}"

    @property
    def log(self) -> Path:
        return self._attempt / LOG

    def prepare(self, spec: dict[str, Any]) -> None:
        """Make the attempt's directory and write what the trainer is told, whole or not at all."""
        _make_private(self._attempt)
        unseen = self._attempt / f".{SPEC}"
        with os.fdopen(os.open(unseen, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
            json.dump(spec, file, ensure_ascii=False)
        unseen.replace(self.directory / SPEC)

    def inside(self, relative: str) -> Path:
        """A directory that the trainer named. ValueError if it is not one of its own."""
        path = (self.directory / relative).resolve()
        if not path.is_relative_to(self.directory.resolve()) or not path.is_dir():
            raise ValueError("the trainer named a directory outside its own")
        return path

    def remove(self) -> None:
        remove(self.directory)


def leftovers(root: Path) -> dict[str, Path]:
    """Every job directory there is, by the id of its job."""
    return {directory.name: directory for directory in _work(root).glob("*/*/*")}


def _work(root: Path) -> Path:
    return root / "work"


def remove(directory: Path) -> None:
    """The job's directory and, once empty, those of its document and tenant."""
    shutil.rmtree(directory, ignore_errors=True)
    for parent in (directory.parent, directory.parent.parent):
        try:
            parent.rmdir()
        except OSError:  # others are in it, or it is gone
            return


def _make_private(directory: Path) -> None:
    """Like mkdir(parents=True), but every directory made is for this user only."""
    for folder in reversed([folder for folder in (directory, *directory.parents) if not folder.exists()]):
        folder.mkdir(mode=0o700, exist_ok=True)
