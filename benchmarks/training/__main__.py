"""How fast the trainer is, beside the loop that anyone would write first.

    python -m benchmarks.training --json OUT [--steps N] [--parts loops,exact,one-page,long]

OUT gets {"setting", "speedup_to_loss": against a PEFT loop that runs the teacher at each step, "speedup_over_cached_loop": against the same
loop with the teacher's outputs kept, "max_loss_difference": of the two loops' losses, where only the caching differs,
"max_loss_difference_ours": of our losses and the loop's, "max_loss_difference_exact" (part `exact`, 3 minutes more): the same with the
teacher's layers kept in the dtype of the rest, "peak_memory_mb": of each process, "tokens_per_s", "matmul_share": what a step's
matrix products come to of what this machine multiplies at most, "one_page_seconds", "one_page", "long_document" (part `long`, five
minutes more: a document of 100,000 tokens, and the most memory that its training took), "curves"}. Chunks of 512 tokens,
targets of 96, batches of 4; each trainer has a process of its own; the time of ours includes the teacher's. At most 25 minutes on 2 cores
with the usual parts; run it on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from benchmarks.training.curve import Curve
from benchmarks.training.documents import long_text, page, trained
from benchmarks.training.machine import matmul_rate, operations
from benchmarks.training.ours import run_ours
from benchmarks.training.plain import run_plain
from benchmarks.training.task import task_of
from server.engine.base_model import BaseModel, load_base, prepare_base
from server.engine.base_source import DEFAULT_BASE
from worker.evaluation.arguments import ending_in_words, positive
from worker.evaluation.output import require_folder
from worker.training.recipe import Recipe
from worker.training.teacher import LAYER_DTYPE

MODELS = Path("~/.cache/kmserve/models")
TRAINERS = ("plain", "cached", "ours")
EXACT = "exact"
PARTS = ("loops", EXACT, "one-page", "long")
USUAL_PARTS = "loops,one-page"
EVALUATIONS = 5
_NEARLY = 1.002
"""Held-out losses count as the same within this: layers are cached in bfloat16."""


def main(argv: Sequence[str] | None = None) -> None:
    arguments = _arguments(argv)
    torch.set_num_threads(arguments.threads)
    with ending_in_words():
        if arguments.trainer:
            print(json.dumps(_run(_base(arguments), arguments.trainer, arguments)))
        else:
            require_folder(arguments.json.absolute().parent)
            _report(_base(arguments), arguments)


def _report(base: BaseModel, arguments: argparse.Namespace) -> None:
    parts = _parts(arguments)
    report: dict[str, Any] = {"setting": _setting(base, arguments)}
    if "loops" in parts:
        report |= _loops(base, arguments)
    if "one-page" in parts:
        one_page = _trained(base, arguments, "one page", page(base))
        report |= {"one_page_seconds": one_page["seconds"], "one_page": one_page}
    if "long" in parts:
        report |= {"long_document": _trained(base, arguments, "a long document", long_text(base))}
    arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps({name: value for name, value in report.items() if name != "curves"}, indent=2))


def _trained(base: BaseModel, arguments: argparse.Namespace, what: str, text: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder, _spinning(f"{what}, {arguments.preset}"):
        return trained(base, arguments.base, arguments.models_dir, Path(folder) / "job", arguments.preset, arguments.threads, text)


def _loops(base: BaseModel, arguments: argparse.Namespace) -> dict[str, Any]:
    rate = matmul_rate(base)
    curves: dict[str, dict[str, Any]] = {}
    exact = EXACT in _parts(arguments)
    for trainer in [*TRAINERS, *([EXACT] if exact else [])]:
        with _spinning(f"{trainer}: {arguments.steps} steps"):
            curves[trainer] = _in_its_process(trainer, arguments)
    plain, cached, ours = (_curve(curves[name]) for name in TRAINERS)
    aim = plain.held_out[-1][1] * _NEARLY
    seconds = {name: _curve(curves[name]).seconds_to(aim) for name in TRAINERS}
    products = operations(base, ours.computed, ours.targets, Recipe.rank) / ours.fit_seconds
    return {
        "speedup_to_loss": _ratio(seconds["plain"], seconds["ours"]),
        "speedup_over_cached_loop": _ratio(seconds["cached"], seconds["ours"]),
        "seconds_to_loss": {"loss": aim, **seconds},
        "max_loss_difference": _difference(plain.losses, cached.losses),
        "max_loss_difference_ours": _difference(plain.losses, ours.losses),
        **({"max_loss_difference_exact": _difference(plain.losses, curves[EXACT]["losses"])} if exact else {}),
        "peak_memory_mb": {name: round(curves[name]["peak_mb"]) for name in TRAINERS},
        "tokens_per_s": round(ours.tokens / ours.fit_seconds, 1),
        "computed_tokens_per_s": round(ours.computed / ours.fit_seconds, 1),
        "matmul_share": round(products / rate, 3),
        "matmul_gflops": round(rate / 1e9, 1),
        "curves": curves,
    }


@contextmanager
def _spinning(doing: str) -> Iterator[None]:
    """What is going on and for how long: a trainer has the cores alone, and is not asked how far it is."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        bars.add_task(doing, total=None)
        yield


def _run(base: BaseModel, trainer: str, arguments: argparse.Namespace) -> dict[str, Any]:
    task, curve = task_of(base, arguments.steps, max(1, arguments.steps // EVALUATIONS)), Curve()
    if trainer in ("ours", EXACT):
        with tempfile.TemporaryDirectory() as folder:
            run_ours(base, task, curve, Path(folder), base.dtype if trainer == EXACT else LAYER_DTYPE)
    else:
        run_plain(base, task, curve, cached=trainer == "cached")
    return curve.as_json()


def _in_its_process(trainer: str, arguments: argparse.Namespace) -> dict[str, Any]:
    options = {"steps": arguments.steps, "threads": arguments.threads, "base": arguments.base, "models-dir": arguments.models_dir}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "benchmarks.training", "--trainer", trainer, "--json", "-", "--dtype", arguments.dtype, *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise ValueError(f"{trainer} ended with {done.returncode}; what it said is above")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _parts(arguments: argparse.Namespace) -> frozenset[str]:
    """`exact` is compared with what the loops lost."""
    named = frozenset(arguments.parts.split(","))
    return named | {"loops"} if EXACT in named else named


def _curve(values: dict[str, Any]) -> Curve:
    return Curve(**{**values, "held_out": [(int(step), float(loss), float(seconds)) for step, loss, seconds in values["held_out"]]})


def _ratio(theirs: float | None, ours: float | None) -> float | None:
    return round(theirs / ours, 2) if theirs and ours else None


def _difference(one: list[float], other: list[float]) -> float:
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


def _base(arguments: argparse.Namespace) -> BaseModel:
    arguments.models_dir.mkdir(parents=True, exist_ok=True)
    prepared = prepare_base(arguments.base, arguments.models_dir)
    return load_base(prepared, device="cpu", dtype=arguments.dtype)


def _setting(base: BaseModel, arguments: argparse.Namespace) -> dict[str, Any]:
    libraries = {name: version(name) for name in ("torch", "transformers", "peft")}
    return {"base": base.name, "dtype": str(base.dtype), "threads": arguments.threads, "steps": arguments.steps, "libraries": libraries}


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    description, _, rest = str(__doc__).partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training", description=description, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, required=True, metavar="OUT", help="where the report goes")
    parser.add_argument("--steps", type=positive, default=50, help="of each loop (default: 50)")
    parser.add_argument("--parts", default=USUAL_PARTS, help="default: %(default)s")
    parser.add_argument("--preset", default="quick", help="of the documents (default: quick)")
    parser.add_argument("--base", default=DEFAULT_BASE)
    parser.add_argument("--dtype", default="float32", help="default: float32, in which curves can be compared")
    parser.add_argument("--models-dir", type=Path, default=MODELS.expanduser(), help="default: %(default)s")
    parser.add_argument("--threads", type=positive, default=torch.get_num_threads(), help="default: all cores")
    parser.add_argument("--trainer", choices=(*TRAINERS, EXACT), help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if unknown := sorted(set(arguments.parts.split(",")) - set(PARTS)):
        parser.error(f"--parts: {', '.join(unknown)} is none of {', '.join(PARTS)}")
    if arguments.steps < EVALUATIONS:
        parser.error(f"--steps must be at least {EVALUATIONS}")
    return arguments


if __name__ == "__main__":
    main()
