"""A real `kmserve up` as a process of its own: API, worker, SQLite, local Qdrant and the real small base model."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.smollm2 import smollm2

TREE = Path(__file__).resolve().parents[2]
_READY = "kmserve is ready at "
_READY_SECONDS = 300.0


@dataclass(frozen=True, kw_only=True)
class Up:
    process: subprocess.Popen[bytes]
    environ: dict[str, str]
    data_dir: Path
    url: str
    log: Path

    @property
    def api_key(self) -> str:
        return (self.data_dir / "admin.key").read_text().strip()

    def children(self) -> list[int]:
        """The ids of its child processes: the API's, then the worker's."""
        return [int(pid) for pid in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()]

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Signal it and wait; its exit code."""
        self.process.send_signal(number)
        return self.process.wait(90)


def environment(data_dir: Path, base: Path) -> dict[str, str]:
    """That of a user who has set a data directory, a base model and any free port."""
    mine = {"KMSERVE_DATA_DIR": str(data_dir), "KMSERVE_BASE_MODEL": str(base), "KMSERVE_PORT": "0"}
    return {**plain_environment(), **mine}


def plain_environment() -> dict[str, str]:
    """That of a user who has nothing of kmserve set, with this tree's packages."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("KMSERVE_", "KMS_"))}
    paths = os.pathsep.join([str(TREE), str(TREE / "clients" / "python" / "src"), plain.get("PYTHONPATH", "")])
    return {**plain, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"}


@contextmanager
def kmserve_up(folder: Path, base: Path | None = None) -> Iterator[Up]:
    """Ready when the context begins, and gone when it ends; its base model is `base` or else the real one that tests share."""
    environ, log = environment(folder / "data", base or smollm2().directory), folder / "up.log"
    with log.open("wb") as output:
        command = [sys.executable, "-m", "server.cli", "up"]
        process = subprocess.Popen(command, cwd=TREE, env=environ, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        url = _url(process, log)
        yield Up(process=process, environ=environ, data_dir=folder / "data", url=url, log=log)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(90)


def _url(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + _READY_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        text = log.read_text(errors="replace")
        if "Ctrl-C stops it." in text:
            return text.partition(_READY)[2].split()[0]
        time.sleep(0.2)
    raise AssertionError(f"kmserve up is not ready:\n{log.read_text(errors='replace')[-4000:]}")
