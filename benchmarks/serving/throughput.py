"""Tokens per second and the times between tokens, point by point: systems take turns, so that a drift of the machine meets all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from benchmarks.serving.figures import KM, KM_KE, Cell, Round, cells, in_order, ratios, result, round_of
from benchmarks.serving.systems import NEEDS_FOLDED, System, Workshop, attempted, ready, takes
from benchmarks.serving.workload import jobs, question_source

_WARM_TOKENS = 48
"""Of the warm-up's prompts: they bring adapters to where they are used, and nothing more is wanted of them."""
_WARM_QUESTIONS = 1_000_000
"""Where the numbers of the warm-up's questions begin."""


def measure_throughput(workshop: Workshop, wanted: Sequence[str], told: Callable[[str], object]) -> dict[str, Any]:
    """`results` and `ratios`."""
    from benchmarks.serving.shelf import make_shelf

    size = workshop.size
    told("writing modules")
    folded = size.most_modules if NEEDS_FOLDED & set(wanted) else 0
    shelf = make_shelf(workshop.plain(), workshop.folder / "shelf", size.most_modules, folded=folded)
    with ready(workshop, wanted, shelf, told) as systems:
        rows = measured(workshop, systems, cells(size.concurrency, size.modules, size.shared_at), told)
    return {"results": in_order(rows), "ratios": ratios(in_order(rows))}


def measured(workshop: Workshop, systems: Sequence[System], points: Sequence[Cell], told: Callable[[str], object]) -> list[dict[str, Any]]:
    """A row for each system at each point that it knows. A system of others that fails is left out from there on."""
    tokenizer, size = workshop.plain().tokenizer, workshop.size
    source, warming = question_source(tokenizer), question_source(tokenizer, first=_WARM_QUESTIONS, tokens=_WARM_TOKENS)
    failed: set[str] = set()
    rows = []
    for cell in points:
        if workshop.late:
            workshop.skip(_shown(cell), "the time for throughput was up")
            continue
        rounds: dict[str, list[Round]] = {system.name: [] for system in systems if takes(system.name, cell)}
        for number, new_tokens, questions in _plan(size.rounds, size.warm_tokens, size.new_tokens, source, warming):
            # Everybody is asked the same; nobody is asked anything twice.
            asked = jobs(tokenizer, cell.scenario, cell.adapters, cell.concurrency, questions, new_tokens)
            for system in _turned(systems, number):
                if system.name not in rounds or system.name in failed:
                    continue
                told(f"{_shown(cell)}: {system.name}")
                traces = attempted(system.name, workshop, partial(system.run, asked))
                if traces is None:
                    failed.add(system.name)
                elif number:
                    rounds[system.name].append(round_of(traces, new_tokens))
        rows += [result(name, cell, told_rounds) for name, told_rounds in rounds.items() if told_rounds]
    return rows


def _plan(
    rounds: int, warm_tokens: int, new_tokens: int, source: Iterator[str], warming: Iterator[str]
) -> Iterator[tuple[int, int, Iterator[str]]]:
    """Round 0 warms up."""
    yield 0, warm_tokens, warming
    for number in range(1, rounds + 1):
        yield number, new_tokens, source


def _turned(systems: Sequence[System], number: int) -> list[System]:
    """Another one comes first in each round."""
    first = number % max(1, len(systems))
    return [*systems[first:], *systems[:first]]


def _shown(cell: Cell) -> str:
    modules = f", {cell.adapters} modules" if cell.scenario in (KM, KM_KE) else ""
    return f"{cell.scenario}, {cell.concurrency} at once{modules}"
