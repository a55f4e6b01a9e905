"""One run: what was asked for, part by part, into one report. Imports the libraries of models once something is measured."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.serving.arguments import LOAD, MODEL, PREFETCH, PREFIX, THROUGHPUT, TIERS, size_of
from benchmarks.serving.setting import cores, setting, versions
from server.collector import keep_what_is_here

if TYPE_CHECKING:
    from benchmarks.serving.systems import Workshop

Told = Callable[[str], object]


def run(arguments: argparse.Namespace, told: Told) -> dict[str, Any]:
    """The report. `told` hears what is being done."""
    threads = arguments.threads or cores()
    facts = {"suite": arguments.suite, "device": arguments.device, "threads": threads}
    facts |= {"parts": arguments.parts, "systems": arguments.systems}
    told("loading libraries")
    if (reason := no_device(arguments.device)) is not None:
        known = setting(**facts, dtype=arguments.dtype, model=arguments.model, versions=versions())
        return {"setting": known, "results": [], "ratios": [], "skipped": [{"name": arguments.device, "reason": reason}]}
    with tempfile.TemporaryDirectory(prefix="kmserve-serving-", ignore_cleanup_errors=True) as folder:
        workshop = _workshop(arguments, threads, Path(folder), told)
        known = setting(
            **facts,
            dtype=workshop.dtype,
            model=workshop.bases.name,
            model_fingerprint=None if workshop.bases.random else workshop.bases.prepared.fingerprint,
            new_tokens=workshop.size.new_tokens,
            rounds=workshop.size.rounds,
            versions=versions(arguments.vllm_python),
        )
        report: dict[str, Any] = {"setting": known, "results": [], "ratios": []}
        seconds = {}
        for part in arguments.parts:
            started = time.monotonic()
            report |= measure(part, arguments, workshop, told)
            seconds[part] = round(time.monotonic() - started, 1)
        return report | {"seconds": seconds, "skipped": workshop.skipped}


def measure(part: str, arguments: argparse.Namespace, workshop: Workshop, told: Told) -> dict[str, Any]:
    """What a part adds to the report."""
    keep_what_is_here()  # as a server does
    if part == THROUGHPUT:
        from benchmarks.serving.throughput import measure_throughput

        return measure_throughput(workshop, arguments.systems, told)
    if (reason := unmeasured(part, arguments.suite, workshop.bases.random)) is not None:
        workshop.skip(part, reason)
        return {}
    return {part: _measure_of(part)(workshop, told)}


def unmeasured(part: str, suite: str, random: bool) -> str | None:
    """Why a part is not for this run."""
    if part == LOAD and suite == "quick":
        return "it takes a minute of load: in suite full only"
    if part in (LOAD, PREFETCH) and random:
        return "a model of random weights has no directory to serve; give one with --model"
    return None


def no_device(device: str) -> str | None:
    """Why the device cannot be measured."""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        return "this machine has no CUDA device that torch can use"
    return None


def _measure_of(part: str) -> Callable[[Workshop, Told], dict[str, Any]]:
    if part == TIERS:
        from benchmarks.serving.tiers import measure_tiers

        return measure_tiers
    if part == PREFETCH:
        from benchmarks.serving.prefetch import measure_prefetch

        return measure_prefetch
    if part == PREFIX:
        from benchmarks.serving.prefix import measure_prefix

        return measure_prefix
    if part == MODEL:
        from benchmarks.serving.cost_model import measure_model

        return measure_model
    from benchmarks.serving.load import measure_load

    return measure_load


def _workshop(arguments: argparse.Namespace, threads: int, folder: Path, told: Told) -> Workshop:
    import torch

    from benchmarks.serving.bases import find_base
    from benchmarks.serving.generate import quiet
    from benchmarks.serving.systems import Workshop
    from server.engine.apart import apart
    from server.engine.device import choose_dtype

    quiet()
    # This thread computes alone: a team of its own would hold up the engine's. Threads that begin from here on take `threads`.
    torch.set_num_threads(1)
    apart(torch.set_num_threads, threads)
    told("preparing the base model")
    dtype = apart(choose_dtype, torch.device(arguments.device), arguments.dtype)
    bases = find_base(arguments.model, arguments.device, dtype)
    size = size_of(arguments.suite, arguments.device, arguments.points)
    return Workshop(bases=bases, size=size, threads=threads, folder=folder, vllm_python=arguments.vllm_python)
