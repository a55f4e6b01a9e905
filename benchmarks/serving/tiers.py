"""Many modules behind few slots: throughput under Zipf-distributed questions, what a swap takes from each tier, publish to first token."""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import partial
from operator import itemgetter
from pathlib import Path
from statistics import harmonic_mean
from typing import Any

import torch

from benchmarks.serving.embedded import Embedded, request_of
from benchmarks.serving.figures import Round, Trace, round_of, rounded, spread, zipf
from benchmarks.serving.load_profile import LoadProfile, mean_of, moved
from benchmarks.serving.shelf import RANK, adapter_bytes, make_modules, random_lora, shapes_of, write_module
from benchmarks.serving.systems import Workshop
from benchmarks.serving.workload import question_source
from server.engine.adapter_bank import AdapterBank
from server.engine.adapter_loader import loader, memory_of
from server.engine.base_model import BaseModel, adapted_layers
from server.engine.host_cache import HostCache
from server.engine.prompt import answer_prompt
from server.engine.request import ArtefactRef, EngineRequest

SLOTS = 16
SMALL_BUDGET = 100
"""Modules that the small host budget has room for."""
PUBLISHED = 5
_PUBLISHED_SEED = 50_000
_MOVES = ("slot_hits", "slot_misses", "host_hits", "host_misses", "host_loads")
_MEMORY_SHARE = 0.5
"""Of what is free, for the modules of the run."""


def measure_tiers(workshop: Workshop, told: Callable[[str], object]) -> dict[str, Any]:
    base, size, folder = workshop.plain(), workshop.size, workshop.folder / "tiers"
    order = zipf(size.tier_modules, size.tier_requests)
    rank = rank_that_fits(base, len(set(order)), free_memory())
    told("tiers: writing modules")
    refs = make_modules(base, folder / "modules", size.tier_modules, rank=rank)
    one = adapter_bytes(base, rank)
    budgets = {"all": len(refs), "small": min(SMALL_BUDGET, len(refs))}
    found, ratios = {}, {}
    for name, room in budgets.items():
        told(f"tiers: host memory for {room} modules")
        few, found[name] = _in_turn(workshop, base, refs, order, room, one)
        found.setdefault("few", few)
        ratios[f"{name}_of_few"] = rounded(found[name]["tokens_per_s"] / few["tokens_per_s"])
    told("tiers: swaps")
    swaps = _swaps(workshop, base, refs, rank)
    told("tiers: publish to first token")
    served = _publish(workshop, base, folder / "published")
    return {
        "modules": len(refs),
        "rank": rank,
        "module_bytes": one,
        "requests": len(order),
        "different_modules_asked": len(set(order)),
        "slots": SLOTS,
        "host_budget_modules": budgets,
        "throughput": found,
        **ratios,
        **swaps,
        **served,
    }


def rank_that_fits(base: BaseModel, modules: int, available: int) -> int:
    """The usual rank, or the highest half, quarter, ... of it with which so many modules fit into half of the free memory."""
    rank = RANK
    while rank > 1 and modules * adapter_bytes(base, rank) > _MEMORY_SHARE * available:
        rank //= 2
    return rank


def free_memory() -> int:
    """Bytes that can be had without swapping, as far as the system tells; else nothing is thought of as free."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), 0)


def _in_turn(
    workshop: Workshop, base: BaseModel, refs: Sequence[ArtefactRef], order: Sequence[int], room: int, module_bytes: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Rounds over as many modules as there are slots, and rounds in `order` over all of them, in turn in one engine: what the machine does
    meanwhile meets both. Host memory has `room` for so many modules and is warm: the most popular ones that are asked for lie there."""
    size = workshop.size
    few, many = _Asked(size.tier_tokens), _Asked(size.tier_tokens)
    with closing(Embedded(base, workshop.options(slots=SLOTS, host_bytes=module_bytes * room, max_batch=SLOTS))) as engine:
        engine.prefetch([refs[number] for number in sorted({*order, *range(SLOTS)})[:room]])
        source = question_source(base.tokenizer, tokens=size.tier_prompt)
        engine.answer([_request(base, next(source), refs[number % len(refs)], 2) for number in range(SLOTS)], SLOTS)
        length = math.ceil(len(order) / size.tier_rounds)
        for part in (order[start : start + length] for start in range(0, len(order), length)):
            for asked, numbers in ((few, [number % SLOTS for number in part]), (many, part)):
                requests = [_request(base, next(source), refs[number], size.tier_tokens) for number in numbers]
                before = engine.stats()
                asked.add(engine.answer(requests, SLOTS), before, engine.stats())
    return few.row(), many.row()


class _Asked:
    """Rounds of one kind and what moved between the tiers in them."""

    def __init__(self, new_tokens: int) -> None:
        self._new_tokens = new_tokens
        self._rounds: list[Round] = []
        self._moved: Counter[str] = Counter()

    def add(self, traces: Sequence[Trace], before: Mapping[str, float], after: Mapping[str, float]) -> None:
        self._rounds.append(round_of(traces, self._new_tokens))
        self._moved.update({key: after[key] - before[key] for key in _MOVES})

    def row(self) -> dict[str, Any]:
        """`tokens_per_s` over all rounds together, which have as many tokens each."""
        speeds = [each.tokens_per_s for each in self._rounds]
        return {
            "tokens_per_s": rounded(harmonic_mean(speeds)),
            "rounds": [rounded(speed) for speed in speeds],
            "ttft": spread([seconds for each in self._rounds for seconds in each.ttft]),
            "itl": spread([seconds for each in self._rounds for seconds in each.itl]),
            **self._moved,
        }


def _request(base: BaseModel, question: str, ref: ArtefactRef | None, new_tokens: int) -> EngineRequest:
    return request_of(answer_prompt(base.tokenizer, question), ref, None, new_tokens)


def _swaps(workshop: Workshop, base: BaseModel, refs: Sequence[ArtefactRef], rank: int) -> dict[str, Any]:
    """Seconds of one module from host memory and from disk into a slot, beside one decoding step of the base model; what the loads from
    disk waited for, in the mean and in that of the slowest tenth."""
    bank = AdapterBank(slots=SLOTS, max_rank=rank, shapes=list(shapes_of(base).values()), dtype=base.dtype, device=base.device)
    count = workshop.size.swaps
    memory = memory_of(base)
    load = loader(base, adapted_layers(base.model), rank, memory=memory)
    with closing(HostCache(load, 0, afterwards=memory.renew)) as cache:  # keeps nothing: each fetch reads the disk
        held = [cache.fetch(ref).result() for ref in refs[:SLOTS]]
        for number in range(SLOTS):
            bank.load(number, held[number % len(held)].tensors)  # takes the bank's memory
        from_host = [_seconds(base, partial(bank.load, number % SLOTS, held[number % len(held)].tensors)) for number in range(count)]
        del held  # what is held is found without a load
        from_disk = []
        with LoadProfile().watching() as profile:
            for number in range(count):
                ref, before = refs[number % len(refs)], profile.sums()
                forget_pages(ref.directory)
                seconds = _seconds(base, partial(_fetched, cache, ref, bank, number % SLOTS))
                from_disk.append((seconds, moved(before, profile.sums())))
    from_disk.sort(key=itemgetter(0))
    return {
        "decode_step": _decode_step(workshop, base),
        "host_to_slot": spread(from_host),
        "disk_to_slot": spread([seconds for seconds, _ in from_disk]),
        "disk_steps": mean_of([steps for _, steps in from_disk]),
        "disk_steps_slowest": mean_of([steps for _, steps in from_disk[-math.ceil(count / 10) :]]),
    }


def _fetched(cache: HostCache, ref: ArtefactRef, bank: AdapterBank, slot: int) -> None:
    bank.load(slot, cache.fetch(ref).result().tensors)


def _seconds(base: BaseModel, action: Callable[[], None]) -> float:
    started = time.perf_counter()
    action()
    if base.device.type == "cuda":
        torch.cuda.synchronize(base.device)
    return time.perf_counter() - started


def _decode_step(workshop: Workshop, base: BaseModel) -> dict[str, float | None]:
    with closing(Embedded(base, workshop.options())) as engine:
        source = question_source(base.tokenizer)
        traces = [engine.answer([_request(base, next(source), None, workshop.size.new_tokens)], 1)[0] for _ in range(2)]
    return spread(round_of(traces[1:], workshop.size.new_tokens).itl)


def _publish(workshop: Workshop, base: BaseModel, folder: Path) -> dict[str, Any]:
    """From an artefact's first byte on its way to the disk to the first token of an answer that wears it."""
    seconds, source = [], question_source(base.tokenizer)
    with closing(Embedded(base, workshop.options())) as engine:
        engine.answer([_request(base, next(source), None, 2)], 1)
        for number in range(PUBLISHED + 1):
            lora = random_lora(shapes_of(base), RANK, _PUBLISHED_SEED + number)
            started = time.perf_counter()
            ref = write_module(base, folder / str(number), _PUBLISHED_SEED + number, lora=lora)
            [trace] = engine.answer([_request(base, next(source), ref, 2)], 1)
            seconds.append(trace.pieces[0] - started)
    return {"publish_to_first_token": spread(seconds[1:])}


def forget_pages(directory: Path) -> None:
    """Let the system drop what it caches of these files, where it can: the next read comes from the disk."""
    if not hasattr(os, "posix_fadvise"):
        return
    for file in directory.iterdir():
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
