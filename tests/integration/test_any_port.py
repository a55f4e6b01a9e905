"""The API on any free port, as a process of its own: the address that it leaves for commands is the one that it answers on."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import httpx2

from server.presence import running_url
from server.settings import Settings


def test_port_0_is_recorded_as_the_port_it_became(tmp_path: Path) -> None:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("KMSERVE_")}
    mine = {"KMSERVE_DATA_DIR": str(tmp_path / "data"), "KMSERVE_PORT": "0", "KMSERVE_BASE_MODEL": "absent", "OMP_NUM_THREADS": "1"}
    settings, log = Settings(data_dir=tmp_path / "data", port=0), tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen([sys.executable, "-m", "server.app"], env={**environ, **mine}, stdout=output, stderr=output)
    try:
        url = _answering(settings, process)
        assert url is not None, log.read_text()
        assert url.removeprefix("http://") in log.read_text()
    finally:
        process.terminate()
        process.wait(90)
    assert running_url(settings) is None


def _answering(settings: Settings, process: subprocess.Popen[bytes]) -> str | None:
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        if (url := running_url(settings)) is not None:
            try:
                httpx2.get(f"{url}/health/live").raise_for_status()
                return url
            except httpx2.ConnectError:
                pass
        time.sleep(0.1)
    return None
