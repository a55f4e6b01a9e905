"""The real trainer, `python -m worker.train`, with a tiny base model on disk: what it is told and what it says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from server.engine.base_model import BaseModel, adapted_layers, load_base, prepare_base
from server.engine.request import ArtefactRef, Scope
from server.modules.artefact import Artefact, read_artefact
from tests.support import base_files
from tests.support.worker_process import ROOT

PATIENCE = 90.0
TEXT = "\n\n".join(f"The gate {i} is painted in colour {i}." for i in range(8))
RECIPE: dict[str, Any] = {
    "rank": 4,
    "alpha": 4.0,
    "max_steps": 40,
    "learning_rate": 1e-2,
    "b_rate": 1.0,
    "batch_size": 4,
    "evaluate_every": 10,
    "questions": 0,
    "summaries": 1,
    "summary_tokens": 8,
    "recitations": 2,
    "window_tokens": 64,
    "chunk_tokens": 64,
}
"""Passes its gate by far. A random model writes no questions; the summaries keep its engine busy."""
MACHINE: dict[str, Any] = {"device": "cpu", "dtype": "float32", "trainer_threads": 1}


def tiny_base_on_disk(folder: Path) -> Path:
    return base_files.save(folder / "base")


def write_spec(job: Path, base: Path, **changes: Any) -> None:
    """The job's directory and what its trainer is told, as worker/spec.py would."""
    job.mkdir(parents=True, exist_ok=True)
    spec = {
        "attempt": 1,
        "preset": "quick",
        "recipe": RECIPE,
        "seed": 1,
        "text": TEXT,
        "passages": [],
        "document_title": "Gates",
        "revision_sha256": "1" * 64,
        "base": {"source": str(base), "models_dir": str(job.parent / "models")},
        "embedder": "all-minilm-l6-v2",
        "engine_threads": None,
        "cores_dir": str(job.parent / "cores"),
        **MACHINE,
    }
    (job / "spec.json").write_text(json.dumps({**spec, **changes}))


class RealTrainer:
    """A process over a job's directory; `said` holds its events up to now, its standard error is `trainer.log`."""

    def __init__(self, job: Path, log: Any, environment: dict[str, str]) -> None:
        self.said: list[dict[str, Any]] = []
        command = [sys.executable, "-m", "worker.train", str(job)]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log}
        self.process = subprocess.Popen(command, cwd=ROOT, env=os.environ | environment, text=True, **pipes)

    def until(self, stage: str, done: int) -> None:
        """Read on to a point of its progress, which must come."""
        for event in self._events():
            if event.get("stage") == stage and event["done"] >= done:
                return
        raise AssertionError(f"it ended with {self.process.wait()} before {stage} {done}")

    def end(self) -> int:
        """Read to its end; its exit code."""
        list(self._events())
        return self.process.wait(PATIENCE)

    def close_stdin(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.said if event["event"] == kind]

    def steps(self, stage: str) -> list[int]:
        return [event["done"] for event in self.events("progress") if event["stage"] == stage]

    def _events(self) -> Iterator[dict[str, Any]]:
        """Every line of its output must be one."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said.append(json.loads(line))
            yield self.said[-1]


@contextmanager
def real_trainer(job: Path, **environment: str) -> Iterator[RealTrainer]:
    """Killed at the end if the test has not ended it."""
    with (job / "trainer.log").open("ab") as log:
        trainer = RealTrainer(job, log, environment)
        with trainer.process:
            try:
                yield trainer
            finally:
                trainer.process.kill()


def loaded(base: Path, models: Path) -> BaseModel:
    return load_base(prepare_base(str(base), models), device="cpu", dtype="float32")


def validated(base: BaseModel, directory: Path, digest: str, manifest_sha256: str) -> Artefact:
    """What serving does before it takes an artefact; raises ModuleCorrupt, ModuleWrongBase."""
    shapes = {name: (layer.out_features, layer.in_features) for name, layer in adapted_layers(base.model).items()}
    ref = ArtefactRef(digest=digest, manifest_sha256=manifest_sha256, directory=directory, scope=Scope.ALL)
    return read_artefact(ref, base.fingerprint, shapes, max_rank=32)
