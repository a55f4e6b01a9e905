"""What a trainer's run was like: losses of its steps, held-out losses with the seconds of training before them, peak memory."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.training.machine import peak_mb


@dataclass(kw_only=True)
class Curve:
    seconds: float = 0.0
    """Of everything that training needs: the teacher's runs too; not of evaluations."""
    losses: list[float] = field(default_factory=list)
    held_out: list[tuple[int, float, float]] = field(default_factory=list)
    """(step, loss, seconds until then)."""
    tokens: int = 0
    """Of all examples that the student read."""
    computed: int = 0
    """Of them those that it computed: what examples of a step begin with alike is read once."""
    targets: int = 0
    fit_seconds: float = 0.0
    peak_mb: float = 0.0

    @contextmanager
    def step(self) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - started

    def trained(self, loss: float) -> None:
        self.losses.append(loss)

    def evaluated(self, step: int, loss: float) -> None:
        self.held_out.append((step, loss, self.seconds))

    def seconds_to(self, loss: float) -> float | None:
        """Until an evaluation found the held-out loss at most `loss`; None if none did."""
        return next((seconds for _, found, seconds in self.held_out if found <= loss), None)

    def as_json(self) -> dict[str, Any]:
        self.peak_mb = peak_mb(os.getpid())
        return asdict(self)
