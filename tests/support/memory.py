"""How much memory a process and all it started take, page by page: what several of them share is counted once (PSS)."""

from __future__ import annotations

import threading
from pathlib import Path
from types import TracebackType

from tests.support.unavailable import unavailable

PROC = Path("/proc")


class PeakMemory:
    """Samples a tree of processes from a thread of its own while the block runs.

    with PeakMemory(process.pid) as memory: ...
    assert memory.peak_bytes < 6e9, memory.at_peak
    """

    def __init__(self, pid: int, every_seconds: float = 1.0) -> None:
        """Skips the test where the system does not tell."""
        if not (PROC / "self" / "smaps_rollup").exists():
            unavailable("no /proc/*/smaps_rollup here", ci_has_it=False)
        self.peak_bytes = 0
        self.samples = 0
        self.at_peak: dict[str, int] = {}
        """Bytes by process, each with the beginning of its command."""
        self._pid = pid
        self._every_seconds = every_seconds
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.is_set():
            self._sample()
            self._ended.wait(self._every_seconds)

    def _sample(self) -> None:
        found = {f"{pid} {_command(pid)}": _pss(pid) for pid in tree(self._pid)}
        self.samples += 1
        if (total := sum(found.values())) > self.peak_bytes:
            self.peak_bytes, self.at_peak = total, found


def tree(root: int) -> list[int]:
    """The process with its children, theirs, and so on."""
    children: dict[int, list[int]] = {}
    for folder in PROC.iterdir():
        if folder.name.isdigit() and (stat := _read(folder / "stat")):
            children.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(folder.name))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def _pss(pid: int) -> int:
    lines = _read(PROC / str(pid) / "smaps_rollup").splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def _command(pid: int) -> str:
    return _read(PROC / str(pid) / "cmdline").replace("\0", " ")[:80]


def _read(path: Path) -> str:
    """Nothing of a process that has ended."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
