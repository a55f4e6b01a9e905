"""`kmserve up` with real parts, and the other commands against it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import base_files
from tests.support.kmserve_up import TREE, Up, kmserve_up
from tests.support.training_rig import PATIENCE, eventually
from tests.support.unavailable import unavailable

if not Path("/proc").is_dir():
    unavailable("children are found through /proc")


def kmserve(up: Up, *arguments: str) -> str:
    """A command as a user gives it, who has not heard of the server's port; its output."""
    environ = {**up.environ, "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, "-m", "server.cli", *arguments], cwd=TREE, env=environ, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_a_document_goes_through_every_command_and_ctrl_c_stops_all(tmp_path: Path) -> None:
    with kmserve_up(tmp_path) as up:
        assert "doc_" in kmserve(up, "upload", "clients/examples/policy.md", "--train", "never", "--wait")
        listed = kmserve(up, "status")
        assert "retrieval_ready" in listed
        document = next(word for word in listed.split() if word.startswith("doc_"))
        assert "policy.md" in kmserve(up, "search", "parental leave", "-k", "1")
        answer = kmserve(
            up, "ask", "What is the code word of the security desk?", "-d", document, "--stream", "--max-tokens", "8", "-k", "1"
        )
        assert "retrieval, no module" in answer
        assert f"deleted {document}" in kmserve(up, "delete", document, "--yes")
        assert "no documents yet" in kmserve(up, "status")
        children = up.children()
        assert len(children) == 2
        assert up.stop(signal.SIGINT) == 0
        assert all(map(gone, children))


@pytest.mark.parametrize(("victim", "name"), [(0, "the API"), (1, "the worker")])
def test_when_one_dies_the_other_is_stopped_and_it_exits_with_an_error(tmp_path: Path, victim: int, name: str) -> None:
    with kmserve_up(tmp_path, base_files.save(tmp_path / "base")) as up:
        children = up.children()
        os.kill(children[victim], signal.SIGKILL)
        assert up.process.wait(PATIENCE) == 1
        assert f"{name} ended with exit code -9" in up.log.read_text()
        eventually(lambda: all(map(gone, children)))
