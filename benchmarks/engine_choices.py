"""Measurements behind choices of the engine on a CPU: layout of thin products, one team of threads, copied blocks, `torch.compile`.

    python -m benchmarks.engine_choices --json OUT [--threads N] [--parts A,B,...]

OUT gets {"thin": [{"rows", "layer", "linear_us", "thin_us"}], "teams": {"alone_ms", "second_team_ms"}, "copies": {"tokens", "read_ms"},
"compile": {"steps": [{"scenario", "requests", "compile_s", "present_ms", "layers_ms", "fixed_ms", "compiled_ms"}]}}: the best of several
rounds, but of `teams` and `compile` the median step over SmolLM2. Two minutes without `compile`, which takes two or three a cell and says
under `skipped` where there is no C++ compiler.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.engine_compile import CELLS, Cell, compiled_steps
from server.engine.apart import apart
from server.engine.base_model import DEFAULT_BASE, BaseModel, load_base, prepare_base
from server.engine.batch_engine import BatchEngine
from server.engine.kv_cache import KvCache
from server.engine.options import EngineOptions
from server.engine.prefix_cache import PrefixCache
from server.engine.prompt import Prompt
from server.engine.request import EngineRequest, Sampling
from server.engine.thin import Forward, forward_of

MODELS = Path("~/.cache/kmserve/models")
LAYERS = {
    "q": (576, 576),
    "k": (192, 576),
    "qkv": (960, 576),
    "up": (1536, 576),
    "gate+up": (3072, 576),
    "down": (576, 1536),
    "head": (49152, 576),
}
ROWS = (1, 2, 4, 8, 16, 32, 64, 128)
BEYOND_CACHE = 80_000_000
"""Bytes of copies of a layer that take turns, so that weights come from memory as they do in a model."""
REQUESTS, PROMPT_TOKENS, STEPS = 16, 128, 16
COPIED_TOKENS = 512
PARTS = ("thin", "teams", "copies", "compile")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine_choices", description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True, metavar="OUT", help="where the report goes")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), metavar="N", help="default: all cores")
    parser.add_argument("--cells", type=_cells, default=CELLS, metavar="S:N,...", help="of compile alone: base:1,km:16")
    parser.add_argument("--parts", default=",".join(PARTS), metavar="A,B,...", help="default: all of %(default)s")
    arguments = parser.parse_args()
    chosen = arguments.parts.split(",")
    if unknown := sorted(set(chosen) - set(PARTS)):
        parser.error(f"--parts: {', '.join(unknown)} is none of {', '.join(PARTS)}")
    torch.set_num_threads(1)
    apart(torch.set_num_threads, arguments.threads)
    report: dict[str, Any] = {"threads": arguments.threads, "torch": torch.__version__}
    parts: dict[str, Callable[[], Any]] = {
        "thin": partial(apart, thin_products),
        "teams": partial(teams, arguments.threads),
        "copies": partial(apart, copies),
        "compile": partial(compiling, arguments.threads, arguments.cells),
    }
    for name in chosen:
        print(f"{name} ...", flush=True)
        report[name] = parts[name]()
        print(json.dumps(report[name], indent=1), flush=True)
    arguments.json.write_text(json.dumps(report, indent=2) + "\n")


@torch.no_grad()
def thin_products() -> list[dict[str, Any]]:
    found = []
    for rows in ROWS:
        for name, (out, width) in LAYERS.items():
            copies = max(1, BEYOND_CACHE // (4 * out * width))
            layers = [nn.Linear(width, out, bias=False).requires_grad_(False) for _ in range(copies)]
            x = torch.randn(1, rows, width)
            linear, thin = (_each([way(layer) for layer in layers], x) for way in (_plain, forward_of))
            found.append({"rows": rows, "layer": name, "linear_us": round(1e6 * linear), "thin_us": round(1e6 * thin)})
    return found


def teams(threads: int) -> dict[str, float]:
    """A step of the engine on a thread of its own; then with another thread alive that has computed in parallel and does nothing."""
    base = _endless_base()
    alone = apart(_step, base, threads)
    torch.set_num_threads(threads)
    torch.ones(512, 512) @ torch.ones(512, 512)  # this thread has a team from now on
    return {"alone_ms": alone, "second_team_ms": apart(_step, base, threads)}


def compiling(threads: int, cells: Sequence[Cell]) -> dict[str, Any]:
    return apart(compiled_steps, _endless_base(), threads, cells)


def copies() -> dict[str, float]:
    """Blocks of a prompt from the prefix cache into a row of SmolLM2's shape: 30 layers of 3 heads of 64."""
    rows, prefixes, like = (
        KvCache(4 * COPIED_TOKENS),
        PrefixCache(2 * COPIED_TOKENS, EngineOptions().block_tokens),
        torch.zeros(1, 3, 1, 64),
    )
    source, target = rows.take(COPIED_TOKENS), rows.take(COPIED_TOKENS)
    assert source is not None
    assert target is not None
    for layer in range(30):
        source.pool.layer(layer, like, like)
    keys = [number.to_bytes(4, "little") for number in range(COPIED_TOKENS // prefixes.block)]
    prefixes.write(keys, source, 0, "benchmark")
    return {"tokens": COPIED_TOKENS, "read_ms": round(1e3 * min(_seconds(lambda: prefixes.read(keys, target, 0)) for _ in range(20)), 2)}


def _cells(text: str) -> tuple[Cell, ...]:
    return tuple((scenario, int(requests)) for scenario, _, requests in (cell.partition(":") for cell in text.split(",")))


def _endless_base() -> BaseModel:
    """Its answers do not end by themselves."""
    base = apart(load_base, prepare_base(DEFAULT_BASE, MODELS.expanduser()), device="cpu", dtype="float32")
    return replace(base, eos_ids=frozenset())


def _step(base: BaseModel, threads: int) -> float:
    """Milliseconds, the median."""
    engine = BatchEngine(base, EngineOptions(max_batch=REQUESTS, threads=threads, prefix_tokens=0))
    try:
        for number in range(REQUESTS):
            prompt = Prompt(bare=tuple(10 + number * PROMPT_TOKENS + place for place in range(PROMPT_TOKENS)), adapted=())
            sampling = Sampling(max_tokens=3 * STEPS)
            request = EngineRequest(request_id=str(number), tenant="benchmark", prompt=prompt, sampling=sampling)
            engine.add(engine.generation(request, lambda event: None))
        while any(sequence.computed < PROMPT_TOKENS for sequence in engine.scheduler):
            engine.step()
        return round(1e3 * statistics.median(_seconds(engine.step) for _ in range(STEPS)), 1)
    finally:
        engine.close()


def _plain(layer: nn.Linear) -> Forward:
    return layer.forward


def _each(forwards: list[Forward], x: torch.Tensor) -> float:
    """Seconds a call, the best of three rounds over all of them."""

    def every() -> None:
        for forward in forwards:
            forward(x)

    every()
    return min(_seconds(every) for _ in range(3)) / len(forwards)


def _seconds(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
