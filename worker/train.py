"""The trainer process: `python -m worker.train JOB_DIR`. Reads spec.json, speaks JSON lines (worker/events.py) on standard output.

It dies with its parent: standard input is a pipe that nobody writes to, and its end means that the parent is gone. SIGTERM asks for a
checkpoint.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from server.engine.cores import TRAINER, CoreShare
from server.engine.options import CpuShare
from worker.events import ExitCode
from worker.progress import Remaining

if TYPE_CHECKING:
    from worker.training.gate import Gate

logger = logging.getLogger("worker.train")

LOADING = "loading"


class Reporter:
    """Writes events; `report` also lets a SIGTERM end the run at a safe point and hands out the threads of the next step."""

    def __init__(self, cores: CpuShare) -> None:
        self.stopping = False
        self.remaining: Remaining | None = None
        """Set once the recipe is known; without it no estimate is told."""
        self.stage = ""
        self._cores = cores

    def __call__(self, stage: str, done: int, total: int, unit: str) -> None:
        self.stage = stage
        self._adjust()
        eta = self.remaining.after(stage, done, total, time.monotonic()) if self.remaining else None
        emit(event="progress", stage=stage, done=done, total=total, unit=unit, eta_seconds=eta)
        if self.stopping:
            from worker.training.fit import Stopped

            raise Stopped

    def _adjust(self) -> None:
        import torch

        if (threads := self._cores.threads()) != torch.get_num_threads():
            torch.set_num_threads(threads)


def emit(**event: Any) -> None:
    print(json.dumps(event), flush=True)


def main() -> int:
    directory = Path(sys.argv[1])
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    threading.Thread(target=_die_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    spec = json.loads((directory / "spec.json").read_text())
    with contextlib.redirect_stdout(sys.stderr):
        cores = _cores(spec)
    reporter = Reporter(cores)
    signal.signal(signal.SIGTERM, lambda *_: setattr(reporter, "stopping", True))
    with cores.active():
        return _guarded(directory, spec, reporter, cores)


def _guarded(directory: Path, spec: dict[str, Any], reporter: Reporter, cores: CpuShare) -> int:
    import torch

    from server.engine.device import taken_by_others
    from server.errors import KmserveError
    from worker.training.fit import Stopped

    try:
        _run(directory, spec, reporter, cores)
        return ExitCode.RESULT
    except Stopped:
        return ExitCode.CHECKPOINTED
    except torch.OutOfMemoryError:
        logger.exception("out of device memory")
        busy = reporter.stage == LOADING and taken_by_others(spec["device"])
        return ExitCode.GPU_BUSY if busy else ExitCode.OUT_OF_MEMORY
    except KmserveError as error:
        logger.exception("the training failed")
        emit(event="error", code=error.code, message=error.detail)
        return ExitCode.FAILED


def _run(directory: Path, spec: dict[str, Any], reporter: Reporter, cores: CpuShare) -> None:
    from server.engine.base_model import load_base, prepare_base
    from server.engine.options import EngineOptions
    from worker.training.pipeline import TrainingSpec, train
    from worker.training.recipe import recipe_for

    recipe = recipe_for(spec["preset"], spec["recipe"])
    reporter.remaining = Remaining(recipe)
    reporter(LOADING, 0, 1, "model")
    prepared = prepare_base(spec["base"]["source"], Path(spec["base"]["models_dir"]))
    base = load_base(prepared, device=spec["device"], dtype=spec["dtype"])
    reporter(LOADING, 1, 1, "model")
    training = TrainingSpec(
        text=spec["text"],
        title=spec["document_title"],
        revision_sha256=spec["revision_sha256"],
        recipe=recipe,
        seed=spec["seed"],
        directory=directory,
        attempt=spec["attempt"],
    )
    options = EngineOptions(max_batch=recipe.synthesis_batch, cores=cores)
    trained = train(base, training, options, _retriever(spec), reporter, lambda: reporter.stopping, _emit_gate)
    emit(
        event="result",
        artefact=str(trained.artefact.directory.relative_to(directory)),
        digest=trained.artefact.digest,
        manifest_sha256=trained.artefact.manifest_sha256,
        gate=vars(trained.gate),
    )


def _emit_gate(gate: Gate) -> None:
    """Passed or not: who was refused wants to see by how much."""
    emit(event="metrics", metrics={"gate": vars(gate)})


def _retriever(spec: dict[str, Any], k: int = 2) -> Any:
    """Passages of this document by cosine similarity, best last; the vector index belongs to the API process."""
    from server.retrieval.embedding import Embedder

    texts = [passage["text"] for passage in spec["passages"]]
    if not texts:
        return lambda question: ()
    embedder = Embedder(spec["embedder"])
    vectors = embedder.encode(texts)

    def retrieve(question: str) -> list[str]:
        (query,) = embedder.encode([question])
        scores = [sum(a * b for a, b in zip(query, vector, strict=True)) for vector in vectors]
        best = sorted(range(len(texts)), key=scores.__getitem__)[-k:]
        return [texts[i] for i in best]

    return retrieve


def _cores(spec: dict[str, Any]) -> CoreShare:
    threads = {"engine_threads": spec["engine_threads"], "trainer_threads": spec["trainer_threads"]}
    return CoreShare(Path(spec["cores_dir"]), TRAINER, **threads)


def _die_with_parent() -> None:
    """The pipe closes when the parent ends, however it ends."""
    with contextlib.suppress(OSError):
        while os.read(0, 1):
            pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
