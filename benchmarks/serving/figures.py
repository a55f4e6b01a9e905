"""What a round of requests came to: traces of tokens in time, their percentiles, and one row of the report.

All times are seconds of one monotonic clock. Knows nothing of systems or models.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

BASE = "base"
KM = "km"
KM_KE = "km+ke"
SCENARIOS = (BASE, KM, KM_KE)
_TELLING = (BASE, KM_KE, KM)
OURS = "kmserve"
PLAIN = "transformers"
FAULTS = "page_faults"
MEASURES = ("wall", "user", "system", "in_line", "asleep", FAULTS)
"""Of a step of a module's load: seconds on the clock, on a processor in either mode, in line for one and asleep; a number."""


@dataclass(frozen=True, kw_only=True)
class Trace:
    """One answer: when it was asked for, when each piece of it came, how many tokens it has. `pieces` is empty where a system does not
    tell; a piece may hold several tokens where it is text."""

    submitted: float
    finished: float
    pieces: tuple[float, ...]
    tokens: int


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One point of measurement: `adapters` different modules among `concurrency` requests that are made together."""

    scenario: str
    concurrency: int
    adapters: int


@dataclass(frozen=True, kw_only=True)
class Round:
    tokens_per_s: float
    ttft: tuple[float, ...]
    itl: tuple[float, ...]
    stopped_early: int


def percentile(values: Sequence[float], share: float) -> float | None:
    """The value below which `share` (0 to 1) of the values lie, interpolated; None of nothing."""
    if not values:
        return None
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def spread(values: Sequence[float]) -> dict[str, float | None]:
    """Median and 95th percentile."""
    return {"p50": rounded(percentile(values, 0.5)), "p95": rounded(percentile(values, 0.95))}


def rounded(value: float | None, digits: int = 4) -> float | None:
    """To so many significant digits: a report is no place for noise."""
    return None if value is None else float(f"{value:.{digits}g}")


def round_of(traces: Sequence[Trace], new_tokens: int) -> Round:
    """Throughput counts from the first request to the last token; ValueError of no traces."""
    if not traces:
        raise ValueError("a round without requests")
    seconds = max(trace.finished for trace in traces) - min(trace.submitted for trace in traces)
    told = [trace for trace in traces if trace.pieces]
    return Round(
        tokens_per_s=sum(trace.tokens for trace in traces) / seconds,
        ttft=tuple(trace.pieces[0] - trace.submitted for trace in told),
        itl=tuple(later - earlier for trace in told for earlier, later in pairwise(trace.pieces)),
        stopped_early=sum(trace.tokens < new_tokens for trace in traces),
    )


def result(system: str, cell: Cell, rounds: Sequence[Round]) -> dict[str, Any]:
    """A row of `results`: the median throughput of the rounds, and the percentiles over all their tokens."""
    ttft = [seconds for each in rounds for seconds in each.ttft]
    itl = [seconds for each in rounds for seconds in each.itl]
    return {
        "system": system,
        "scenario": cell.scenario,
        "concurrency": cell.concurrency,
        "adapters": cell.adapters,
        "tokens_per_s": rounded(median(each.tokens_per_s for each in rounds)),
        "ttft_p50": rounded(percentile(ttft, 0.5)),
        "ttft_p95": rounded(percentile(ttft, 0.95)),
        "itl_p50": rounded(percentile(itl, 0.5)),
        "itl_p95": rounded(percentile(itl, 0.95)),
        "rounds": len(rounds),
        "stopped_early": sum(each.stopped_early for each in rounds),
    }


def cells(concurrency: Sequence[int], modules: Iterable[int] | None = None, shared_at: Iterable[int] | None = None) -> list[Cell]:
    """Every scenario at every concurrency, the most telling first: base and km+ke at the ends.

    Adapted ones with as many modules as requests, and last with one for all of them, the latter only at `shared_at` where that is given;
    or with `modules` where there are enough requests.
    """
    made = []
    for count in concurrency:
        with_one = shared_at is None or count in shared_at
        wanted = {count, *([1] if with_one else [])} if modules is None else {number for number in modules if number <= count}
        made.append(Cell(scenario=BASE, concurrency=count, adapters=0))
        made += [Cell(scenario=name, concurrency=count, adapters=number) for name in (KM_KE, KM) for number in wanted]
    ends = (min(concurrency), max(concurrency))

    def turn(cell: Cell) -> tuple[bool | int, ...]:
        shared = 1 == cell.adapters < cell.concurrency
        return shared, cell.scenario == KM, cell.concurrency not in ends, -cell.concurrency, _TELLING.index(cell.scenario), -cell.adapters

    return sorted(made, key=turn)


def in_order(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """For readers, whatever order they were measured in."""
    return sorted(rows, key=lambda row: (SCENARIOS.index(row["scenario"]), row["concurrency"], row["adapters"]))


def ratios(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each row against what it is to be read by in the same run: its own system's base at the same concurrency (of a system that
    answers without adapters nowhere: transformers'), and, of ours, every other system at the same point. `ratio` above 1 is faster."""
    speed = {(row["system"], row["scenario"], row["concurrency"], row["adapters"]): row["tokens_per_s"] for row in results}
    found = []
    for (system, scenario, concurrency, adapters), value in speed.items():
        point = {"system": system, "scenario": scenario, "concurrency": concurrency, "adapters": adapters}
        owner = next((name for name in (system, PLAIN) if (name, BASE, concurrency, 0) in speed), None)
        if scenario != BASE and owner is not None:
            found.append({**point, "to": f"{owner} {BASE}", "ratio": rounded(value / speed[owner, BASE, concurrency, 0])})
        for (other, *rest), rival in speed.items():
            if system.startswith(OURS) and other != system and rest == [scenario, concurrency, adapters]:
                found.append({**point, "to": other, "ratio": rounded(value / rival)})
    return found


def zipf(items: int, draws: int, exponent: float = 1.0, seed: int = 0) -> list[int]:
    """Which of `items` (0 the most popular) each of `draws` requests asks for: item k with weight (k + 1) ** -exponent."""
    weights = [(rank + 1) ** -exponent for rank in range(items)]
    return random.Random(seed).choices(range(items), weights, k=draws)
