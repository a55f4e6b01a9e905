"""Tokens per second and the times between tokens, point by point: systems take turns, so that a drift of the machine meets all."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from benchmarks.serving.figures import BASE, KM, KM_KE, OURS, Cell, Round, Trace, cells, in_order, ratios, result, round_of
from benchmarks.serving.systems import NEEDS_FOLDED, System, Workshop, attempted, ready, takes
from benchmarks.serving.workload import Job, jobs, question_source

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
        points = size.points or cells(size.concurrency, size.modules, size.shared_at)
        rows = measured(workshop, systems, points, told)
    workshop.results = in_order(rows)
    return {"results": workshop.results, "ratios": ratios(workshop.results)}


def measured(workshop: Workshop, systems: Sequence[System], points: Sequence[Cell], told: Callable[[str], object]) -> list[dict[str, Any]]:
    """A row for each system at each point that it knows. A system of others that fails, or is too slow, is left out from there on."""
    tokenizer, size = workshop.plain().tokenizer, workshop.size
    source = question_source(tokenizer)
    warming = question_source(tokenizer, first=_WARM_QUESTIONS, tokens=_WARM_TOKENS)
    out = Outs(workshop)
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
                if system.name not in rounds or out.has(system.name, cell):
                    continue
                told(f"{_shown(cell)}: {system.name}")
                traces = out.attempt(system, cell, asked, warming=not number)
                if number and traces is not None:
                    rounds[system.name].append(round_of(traces, new_tokens))
        rows += [result(name, cell, told_rounds) for name, told_rounds in rounds.items() if told_rounds]
    return rows


class Outs:
    """Which systems are out of which points: of all after a failure, of those that ask as much or more after a slow warm-up."""

    def __init__(self, workshop: Workshop) -> None:
        self._workshop = workshop
        self._failed: set[str] = set()
        self._slow: dict[str, list[Cell]] = {}

    def has(self, name: str, cell: Cell) -> bool:
        slow = self._slow.get(name, ())
        return name in self._failed or any(_asks_more(cell, known) for known in slow)

    def attempt(self, system: System, cell: Cell, asked: Sequence[Job], warming: bool) -> list[Trace] | None:
        started = time.monotonic()
        traces = attempted(system.name, self._workshop, partial(system.run, asked))
        seconds = time.monotonic() - started
        if traces is None:
            self._failed.add(system.name)
        elif warming and not system.name.startswith(OURS) and seconds > self._workshop.size.patience:
            self._slow.setdefault(system.name, []).append(cell)
            reason = f"its warm-up took {seconds:.0f} s; it is left out of this and of larger points"
            self._workshop.skip(f"{system.name} at {_shown(cell)}", reason)
        return traces


def _asks_more(cell: Cell, known: Cell) -> bool:
    """With adapters of one who was slow with adapters, without of one who was slow without."""
    return (cell.scenario == BASE) == (known.scenario == BASE) and cell.concurrency >= known.concurrency


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
