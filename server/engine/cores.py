"""Splits a CPU between the engine and a trainer: each holds its own advisory lock while it works and asks for the other's.

While the other is idle a process may use every core, else its share; the shares together never exceed the cores.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ENGINE = "engine"
TRAINER = "trainer"


class CoreShare:
    """One process's side: `role` is ENGINE or TRAINER. A kill releases its lock."""

    def __init__(self, directory: Path, role: str, cores: int | None = None) -> None:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        other = TRAINER if role == ENGINE else ENGINE
        self._mine = (directory / f"{role}.lock").open("w")
        self._theirs = (directory / f"{other}.lock").open("w")
        self._cores = cores or os.cpu_count() or 1
        self._share = self._cores - self._cores // 2 if role == ENGINE else max(1, self._cores // 2)

    def threads(self) -> int:
        """Threads to use for the next step."""
        return self._share if self._other_is_active() else self._cores

    @contextmanager
    def active(self) -> Iterator[None]:
        """Around a busy period."""
        fcntl.flock(self._mine, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._mine, fcntl.LOCK_UN)

    def close(self) -> None:
        self._mine.close()
        self._theirs.close()

    def _other_is_active(self) -> bool:
        try:
            fcntl.flock(self._theirs, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        fcntl.flock(self._theirs, fcntl.LOCK_UN)
        return False
