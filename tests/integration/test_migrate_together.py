"""The API and workers may start at once over one database that has yet to be migrated."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support.databases import sqlite_url


def test_processes_that_start_together_migrate_once(tmp_path: Path) -> None:
    url = sqlite_url(tmp_path)
    script = f"from server.db.migrate import upgrade; upgrade({url!r})"
    starts = [subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE) for _ in range(3)]
    assert [(process.communicate()[1], process.returncode) for process in starts] == [(b"", 0)] * 3
