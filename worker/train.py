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
from worker.reading import GENERATOR_API_KEY, Nearest, artefact_ref, embedder_of, taught_documents

if TYPE_CHECKING:
    from server.engine.base_model import BaseModel
    from server.engine.request import ArtefactRef
    from worker.extractor.pipeline import ExtractorGate
    from worker.progress import Estimate
    from worker.training.gate import Gate
    from worker.training.pipeline import Writer

logger = logging.getLogger("worker.train")

LOADING = "loading"
PASSAGES = 2
"""Of the gate's open-book figures."""


class Reporter:
    """Writes events; `report` also lets a SIGTERM end the run at a safe point and hands out the threads of the next step."""

    def __init__(self, cores: CpuShare) -> None:
        self.stopping = False
        self.remaining: Estimate | None = None
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
    if spec.get("kind") == "extractor":
        _run_extractor(directory, spec, reporter)
    else:
        _run_module(directory, spec, reporter, cores)


def _run_module(directory: Path, spec: dict[str, Any], reporter: Reporter, cores: CpuShare) -> None:
    from server.engine.options import EngineOptions
    from worker.progress import Remaining
    from worker.training.guard import guard_store
    from worker.training.pipeline import TrainingSpec, train
    from worker.training.recipe import recipe_for, while_wearing

    extractor = artefact_ref(spec.get("extractor"))
    worn = {} if extractor is None else {"scope": str(extractor.scope), **while_wearing(spec["preset"])}  # unless the recipe names others
    recipe = recipe_for(spec["preset"], {**worn, **spec["recipe"]})
    reporter.remaining = Remaining(recipe)
    base = _load_base(spec, reporter)
    training = TrainingSpec(
        text=spec["text"],
        title=spec["document_title"],
        revision_sha256=spec["revision_sha256"],
        recipe=recipe,
        seed=spec["seed"],
        directory=directory,
        attempt=spec["attempt"],
        extractor=extractor,
        guard_answers=guard_store(Path(spec["base"]["models_dir"]), base),
        writer=_external_writer(spec, reporter),
    )
    options = EngineOptions(max_batch=recipe.synthesis_batch, cores=cores)
    nearest = Nearest([passage["text"] for passage in spec["passages"]], embedder_of(spec))
    trained = train(base, training, options, lambda question: nearest(question, PASSAGES), reporter, lambda: reporter.stopping, _emit_gate)
    _emit_result(directory, trained.artefact, trained.gate)


def _run_extractor(directory: Path, spec: dict[str, Any], reporter: Reporter) -> None:
    from worker.extractor.pipeline import ExtractorSpec, train_extractor
    from worker.extractor.recipe import extractor_recipe
    from worker.extractor.start import chosen_start, manifest_of
    from worker.progress import FittingPace

    reporter.remaining = FittingPace()
    base = _load_base(spec, reporter)
    documents = taught_documents(spec, embedder_of(spec))
    read_only = spec["recipe"].get("without_module") == 1
    modules = [] if read_only else [document.module for document in documents if document.module is not None]
    start = chosen_start(base, spec.get("start"), artefact_ref(spec.get("extractor")), spec["recipe"], modules)
    recipe = extractor_recipe(spec["recipe"], modules=bool(modules), start=manifest_of(start))
    training = ExtractorSpec(
        documents=documents,
        recipe=recipe,
        seed=spec["seed"],
        directory=directory,
        attempt=spec["attempt"],
        start=start,
    )
    trained = train_extractor(base, training, reporter, _emit_gate)
    _emit_result(directory, trained.artefact, trained.gate)


def _external_writer(spec: dict[str, Any], reporter: Reporter) -> Writer | None:
    """In the place of the base model, where the settings name one."""
    generator = spec.get("generator")
    if generator is None:
        return None
    from worker.external_generator import ExternalGenerator
    from worker.training.pipeline import Writer

    key = os.environ.get(GENERATOR_API_KEY)
    external = ExternalGenerator(**generator, api_key=key, should_stop=lambda: reporter.stopping)
    return Writer(name=external.model, generate=external)


def _load_base(spec: dict[str, Any], reporter: Reporter) -> BaseModel:
    from server.engine.base_model import load_base, prepare_base

    reporter(LOADING, 0, 1, "model")
    prepared = prepare_base(spec["base"]["source"], Path(spec["base"]["models_dir"]))
    base = load_base(prepared, device=spec["device"], dtype=spec["dtype"])
    reporter(LOADING, 1, 1, "model")
    return base


def _emit_result(directory: Path, artefact: ArtefactRef, gate: Gate | ExtractorGate) -> None:
    emit(
        event="result",
        artefact=str(artefact.directory.relative_to(directory)),
        digest=artefact.digest,
        manifest_sha256=artefact.manifest_sha256,
        composition=artefact.composition,
        gate=vars(gate),
    )


def _emit_gate(gate: Gate | ExtractorGate) -> None:
    """Passed or not: who was refused wants to see by how much."""
    emit(event="metrics", metrics={"gate": vars(gate)})


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
