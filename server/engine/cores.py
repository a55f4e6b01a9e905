"""Splits a CPU between the engine and trainers: each holds its role's advisory lock while it works and asks for the other's.

While the other is idle a process may use every core it is allowed, else its share. Both together never exceed the cores, where there
are two.
"""

from __future__ import annotations

import fcntl
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock

ENGINE = "engine"
TRAINER = "trainer"
CPU_MAX = Path("/sys/fs/cgroup/cpu.max")


class CoreShare:
    """One process's side: `role` is ENGINE or TRAINER. Thread-safe. A kill releases its lock.

    `engine_threads` and `trainer_threads` fix a side's number; a side that is not fixed leaves the other's to it. `cores` are those that
    the process may run on.
    """

    def __init__(
        self,
        directory: Path,
        role: str,
        *,
        engine_threads: int | None = None,
        trainer_threads: int | None = None,
        cores: int | None = None,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        mine, theirs = (ENGINE, TRAINER) if role == ENGINE else (TRAINER, ENGINE)
        fixed = {ENGINE: engine_threads, TRAINER: trainer_threads}
        self._fixed = fixed[mine]
        self._cores = cores or _usable_cores()
        self._share = _share(self._cores, mine, fixed[theirs])
        self._mine = (directory / f"{mine}.lock").open("w")
        self._theirs = (directory / f"{theirs}.lock").open("w")
        self._guard = Lock()
        self._busy = 0

    def threads(self) -> int:
        """Threads to use for the next step."""
        if self._fixed is not None:
            return self._fixed
        return self._share if self._other_is_active() else self._cores

    @contextmanager
    def active(self) -> Iterator[None]:
        """Around a busy period. Periods of several threads may overlap, and those of several processes of one role."""
        with self._guard:
            if self._busy == 0:
                fcntl.flock(self._mine, fcntl.LOCK_SH)
            self._busy += 1
        try:
            yield
        finally:
            with self._guard:
                self._busy -= 1
                if self._busy == 0:
                    fcntl.flock(self._mine, fcntl.LOCK_UN)

    def close(self) -> None:
        self._mine.close()
        self._theirs.close()

    def _other_is_active(self) -> bool:
        """Only a busy process holds the lock for longer than this question, which two may ask at once: a wrong yes costs one step."""
        with self._guard:
            try:
                fcntl.flock(self._theirs, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            fcntl.flock(self._theirs, fcntl.LOCK_UN)
            return False


def _usable_cores() -> int:
    """Those this process may run on: `taskset` or a container may allow fewer than there are. macOS has no such limit to ask for."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(allowed, _quota(CPU_MAX) or allowed))


def _quota(file: Path) -> int | None:
    """Whole cores of a container's CPU quota, in microseconds a period (cgroup v2, `cpu.max`); None without one."""
    try:
        quota, period = file.read_text().split()
        return math.ceil(int(quota) / int(period))
    except (OSError, ValueError):
        return None


def _share(cores: int, role: str, other_fixed: int | None) -> int:
    """What is left where the other side's number is fixed, else half, the odd core to the engine; at least one."""
    if other_fixed is not None:
        return max(1, cores - other_fixed)
    return cores - cores // 2 if role == ENGINE else max(1, cores // 2)
