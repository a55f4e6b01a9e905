"""A vLLM that does not come up leaves nothing behind that would take time from the systems beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.serving import vllm
from benchmarks.serving.vllm import Vllm, VllmError


def started(folder: Path, script: str) -> Vllm:
    python = folder / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o700)
    return Vllm(python, folder / "model", {"km": []}, folder / "vllm", dtype="float32", threads=1, batch=1)


def test_one_that_ends_says_how_its_log_ended(tmp_path: Path) -> None:
    system = started(tmp_path, "echo no such device; exit 3")
    with pytest.raises(VllmError, match="exit code 3; its log ends:\nno such device"):
        system.wait_ready()


def test_one_that_takes_too_long_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm, "START_SECONDS", 0.0)
    system = started(tmp_path, "exec sleep 60")
    with pytest.raises(VllmError, match="not ready"):
        system.wait_ready()
    assert system._process.poll() is not None


def test_one_that_refuses_a_module_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise VllmError("refused")

    monkeypatch.setattr(vllm, "_healthy", lambda _: True)
    monkeypatch.setattr(Vllm, "_load", refuse)
    system = started(tmp_path, "exec sleep 60")
    system._folded = {"km": [tmp_path]}
    with pytest.raises(VllmError, match="refused"):
        system.wait_ready()
    assert system._process.poll() is not None
