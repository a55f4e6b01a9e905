"""What the load of a module waits for in a server: each step's time on the clock, on a processor, in line for one, and asleep.

A thread that sleeps within a load waits for the interpreter's lock, and while it reads for the disk too: nothing else puts it to sleep.
Linux alone tells of one thread; elsewhere the times on a processor are those of the whole process, and none is in line.
"""

from __future__ import annotations

import resource
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

from benchmarks.serving.figures import MEASURES, rounded
from server.engine import adapter_loader, host_cache
from server.modules import artefact

WHOLE, READ, PROVE, LAY_OUT = "whole", "read", "prove", "lay_out"
_STEPS = {
    WHOLE: (host_cache, "_tried"),
    READ: (artefact, "read_regular"),
    PROVE: (artefact, "lora_tensors"),
    LAY_OUT: (adapter_loader, "_laid_out"),
}
"""Where the engine finds each step; reading includes the digest of what has been read. The rest of the whole is JSON and checks."""
_SCHEDSTAT = Path("/proc/thread-self/schedstat")

Sums = Mapping[str, Mapping[str, float]]
Step = TypeVar("Step", bound=Callable[..., Any])


def moved(before: Sums, after: Sums) -> dict[str, dict[str, float]]:
    """What came to the sums between two looks at them."""
    return {name: {measure: value - before.get(name, {}).get(measure, 0.0) for measure, value in of.items()} for name, of in after.items()}


def mean_of(loads: Sequence[Sums]) -> dict[str, dict[str, float | None]]:
    """Of sums that each are of one load."""
    return {name: {measure: rounded(fmean(load[name][measure] for load in loads)) for measure in of} for name, of in loads[0].items()}


class LoadProfile:
    """Sums over the loads since it was made, in seconds and numbers. Steps run on several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sums: dict[str, dict[str, float]] = defaultdict(lambda: dict.fromkeys(MEASURES, 0.0))

    @contextmanager
    def watching(self) -> Iterator[LoadProfile]:
        """Count every load of this process meanwhile."""
        plain = {name: getattr(module, function) for name, (module, function) in _STEPS.items()}
        for name, (module, function) in _STEPS.items():
            setattr(module, function, self._timed(name, plain[name]))
        try:
            yield self
        finally:
            for name, (module, function) in _STEPS.items():
                setattr(module, function, plain[name])

    def sums(self) -> dict[str, dict[str, float]]:
        with self._lock:
            return {name: dict(values) for name, values in self._sums.items()}

    def _timed(self, name: str, step: Step) -> Step:
        @wraps(step)
        def timed(*arguments: Any, **options: Any) -> Any:
            before = _now()
            try:
                return step(*arguments, **options)
            finally:
                self._add(name, [after - start for after, start in zip(_now(), before, strict=True)])

        return timed  # type: ignore[return-value]

    def _add(self, name: str, passed: list[float]) -> None:
        wall, user, system, in_line, faults = passed
        asleep = max(0.0, wall - user - system - in_line)
        with self._lock:
            for measure, value in zip(MEASURES, (wall, user, system, in_line, asleep, faults), strict=True):
                self._sums[name][measure] += value


def _now() -> tuple[float, float, float, float, float]:
    """Of this thread: seconds on the clock, in user and system mode, in line for a processor, and page faults."""
    who = resource.RUSAGE_THREAD if sys.platform == "linux" else resource.RUSAGE_SELF
    usage = resource.getrusage(who)
    in_line = int(_SCHEDSTAT.read_bytes().split()[1]) / 1e9 if _SCHEDSTAT.exists() else 0.0
    return time.perf_counter(), usage.ru_utime, usage.ru_stime, in_line, float(usage.ru_minflt + usage.ru_majflt)
