"""What `torch.compile` makes of a decoding step on a CPU, against the step that serves it today.

Part `compile` of `benchmarks.engine_choices`. The ways take turns within one engine, so that a drift of the machine meets all of them:

present     as it is served
layers      the same, each decoder layer compiled around its attention and adapters: one compilation serves all layers
fixed       the step of fixed shape that CUDA graphs record, call by call
compiled    that step compiled as a whole, one compilation for each shape; of bare requests alone, for others it takes too long
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from benchmarks.serving.shelf import RANK, make_modules
from server.engine import attention
from server.engine.base_model import BaseModel
from server.engine.batch_engine import BatchEngine
from server.engine.decoding import Compute, Decoding
from server.engine.options import EngineOptions
from server.engine.prompt import Prompt
from server.engine.request import ArtefactRef, EngineRequest, Sampling
from server.engine.routed_lora import Route

COMPILERS = ("g++", "c++", "clang++")
Cell = tuple[str, int]
CELLS: tuple[Cell, ...] = (("base", 1), ("base", 16), ("km", 1), ("km", 16))
"""Scenario and requests."""
PROMPT_TOKENS, ROUNDS = 128, 12


def compiler() -> str | None:
    """The first C++ compiler of the path; Inductor writes C++ for a CPU."""
    return next((found for name in COMPILERS if (found := shutil.which(name))), None)


def compiled_steps(base: BaseModel, threads: int, cells: Sequence[Cell] = CELLS) -> dict[str, Any]:
    """Median milliseconds of a step by each way, and the seconds of its compilation; what is missing where nothing can be compiled."""
    if compiler() is None:
        return {"skipped": f"no C++ compiler: none of {', '.join(COMPILERS)} is on the path"}
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory(prefix="kmserve-compile-") as folder:
        modules = make_modules(base, Path(folder), max(requests for _, requests in cells))
        return {"steps": [_measured(base, threads, cell, modules) for cell in cells]}


def _measured(base: BaseModel, threads: int, cell: Cell, modules: Sequence[ArtefactRef]) -> dict[str, Any]:
    scenario, requests = cell
    options = EngineOptions(max_batch=requests, threads=threads, prefix_tokens=0, max_rank=RANK, static_decode=True)
    with closing(BatchEngine(base, options)) as engine:
        layers, compiling = _Layers(base), _Compiling()
        fixed, compiled = engine.runner.decoding, engine.runner.fixed_shapes(compiling)
        steps: dict[str, Callable[[], float]] = {
            "present": lambda: _step(engine, None),
            "layers": lambda: _compiled_layers_step(engine, layers),
            "fixed": lambda: _step(engine, fixed),
        }
        if scenario == "base":
            steps["compiled"] = lambda: _step(engine, compiled)
        _fill(engine, [modules[number] if scenario == "km" else None for number in range(requests)], len(steps))
        first = {name: step() for name, step in steps.items()}
        taken: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(ROUNDS):
            for name, step in steps.items():
                taken[name].append(step())
        row: dict[str, Any] = {"scenario": scenario, "requests": requests, "layers_compile_s": round(first["layers"], 1)}
        if "compiled" in steps:
            row["compile_s"] = round(compiling.seconds, 1)
        if compiled.failed:
            row["failed"] = compiling.reason
        return row | {f"{name}_ms": round(1e3 * statistics.median(times), 1) for name, times in taken.items()}


class _Compiling:
    """Has a step compiled and run once; how long that took, or why it could not be done."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.reason = ""

    def __call__(self, compute: Compute) -> Compute:
        compiled: Callable[[], Tensor] = torch.compile(compute, dynamic=False)
        started = time.perf_counter()
        try:
            compiled()
        except Exception as error:
            self.reason = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            raise
        finally:
            self.seconds += time.perf_counter() - started
        return compiled


class _Layers:
    """A model's decoder layers, compiled while `compiled` lasts."""

    def __init__(self, base: BaseModel) -> None:
        self._layers: Sequence[nn.Module] = list(base.model.model.layers)
        self._forwards = [torch.compile(layer.forward) for layer in self._layers]

    @contextmanager
    def compiled(self) -> Iterator[None]:
        AttentionInterface.register(attention.PACKED, torch.compiler.disable(attention.packed_attention))  # type: ignore[no-untyped-call]
        add = Route.add
        setattr(Route, "add", torch.compiler.disable(add))  # type: ignore[no-untyped-call]  # noqa: B010
        for layer, forward in zip(self._layers, self._forwards, strict=True):
            layer.forward = forward
        try:
            yield
        finally:
            attention.register()
            setattr(Route, "add", add)  # noqa: B010
            for layer in self._layers:
                del layer.forward


def _step(engine: BatchEngine, decoding: Decoding | None) -> float:
    engine.runner.decoding = decoding
    started = time.perf_counter()
    engine.step()
    return time.perf_counter() - started


def _compiled_layers_step(engine: BatchEngine, layers: _Layers) -> float:
    with layers.compiled():
        return _step(engine, None)


def _fill(engine: BatchEngine, modules: Sequence[ArtefactRef | None], ways: int) -> None:
    """A request for each, its prompt read."""
    for number, module in enumerate(modules):
        prompt = Prompt(bare=(), adapted=tuple(10 + number * PROMPT_TOKENS + place for place in range(PROMPT_TOKENS)))
        sampling = Sampling(max_tokens=(ROUNDS + 2) * ways)
        request = EngineRequest(request_id=str(number), tenant="benchmark", prompt=prompt, module=module, sampling=sampling)
        engine.add(engine.generation(request, lambda event: None))
    while engine.scheduler.waiting or any(sequence.computed < PROMPT_TOKENS for sequence in engine.scheduler):
        if not engine.step():
            engine.wait_for_load(1.0)
