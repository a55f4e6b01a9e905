"""Real Celery workers with the fake trainer, as processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from server.settings import Settings
from tests.support.training_rig import PATIENCE

ROOT = Path(__file__).parents[2]
_PASSED_ON = ("data_dir", "database_url", "broker_url", "lease_seconds", "reap_seconds", "ring_seconds")


class WorkerProcess:
    def __init__(self, settings: Settings, log: IO[bytes]) -> None:
        chosen = {f"KMSERVE_{name.upper()}": getattr(settings, name) for name in _PASSED_ON}
        environment = {name: value for name, value in os.environ.items() if not name.startswith("KMSERVE_")}
        environment |= {name: str(value) for name, value in chosen.items() if value is not None}
        command = [sys.executable, "-m", "tests.support.celery_with_fake_trainer"]
        self._process = subprocess.Popen(command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    @property
    def pid(self) -> int:
        return self._process.pid

    def terminate(self, number: int = signal.SIGTERM) -> int:
        """Signal it and wait; returns its exit code."""
        self._process.send_signal(number)
        return self._process.wait(PATIENCE)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


@contextmanager
def worker_process(settings: Settings) -> Iterator[WorkerProcess]:
    """Killed at the end if the test has not ended it; its log is `worker.log` in the data directory."""
    with (settings.root / "worker.log").open("ab") as log:
        worker = WorkerProcess(settings, log)
        try:
            yield worker
        finally:
            worker.kill()
