"""What the README promises of `kmserve demo`: its result, its time and its memory, measured on a real run."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.kmserve_up import TREE, plain_environment
from tests.support.memory import PeakMemory, tree
from tests.support.training_rig import alive, eventually

SECONDS = 8 * 60
BYTES = 6_000_000_000
STOPPING_SECONDS = 60

PARENT = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"
CHILD = "fat = b'x' * 150_000_000; print('fat', flush=True); input()"


@pytest.mark.slow
def test_the_demo_succeeds_in_eight_minutes_and_six_gigabytes(tmp_path: Path) -> None:
    """From an installation on, so with the conversion of the base model."""
    environ = {**plain_environment(), "TMPDIR": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache"), "COLUMNS": "120"}
    log = tmp_path / "demo.log"
    started = time.monotonic()
    with log.open("wb") as output:
        command = [sys.executable, "-m", "server.cli", "demo"]
        process = subprocess.Popen(command, cwd=TREE, env=environ, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    with process, PeakMemory(process.pid) as memory:
        ended = _ended(process, SECONDS)
    told = log.read_text(errors="replace")
    print(f"{told}\n{time.monotonic() - started:.0f} s, {memory.peak_bytes / 1e9:.2f} GB at most: {memory.at_peak}")
    assert ended, f"not done after {SECONDS} s"
    assert process.returncode == 0, told
    assert memory.peak_bytes < BYTES, memory.at_peak
    assert list(tmp_path.glob("kmserve-demo-*")) == []


def _ended(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Whether it ended by itself in that time; if not, it is interrupted like by Ctrl-C, and then it stops all that it started."""
    try:
        process.wait(seconds)
        return True
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        process.wait(STOPPING_SECONDS)
        return False
    finally:
        process.kill()


def test_memory_is_that_of_the_whole_tree() -> None:
    command = [sys.executable, "-c", PARENT, CHILD]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        with PeakMemory(process.pid, every_seconds=0.05) as memory:
            assert process.stdout.readline() == b"fat\n"
            seen = memory.samples
            eventually(lambda: memory.samples > seen + 1)
        family = tree(process.pid)
        process.communicate(b"\n")
    assert len(family) == len(memory.at_peak) == 2
    assert 150e6 < memory.peak_bytes < 300e6
    assert not any(map(alive, family))
