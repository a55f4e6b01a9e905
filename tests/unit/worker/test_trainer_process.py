from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.training_rig import alive, eventually
from worker.trainer_process import NICE, TrainerProcess

HEARS_ITS_PARENT = "import os; print('{}', flush=True); os.read(0, 1)"


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-I", "-c", code)


def test_it_runs_apart_and_humbly(tmp_path: Path) -> None:
    with TrainerProcess(python(HEARS_ITS_PARENT), tmp_path, tmp_path / "log", grace_seconds=1) as trainer:
        assert os.getsid(trainer.pid) == trainer.pid
        assert os.getpriority(os.PRIO_PROCESS, trainer.pid) == NICE


def test_secrets_are_told_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KMSERVE_HOST", "here")
    code = "import os, sys; print(os.environ['KMSERVE_HOST'], os.environ['KMSERVE_GENERATOR_API_KEY'], file=sys.stderr)"
    log = tmp_path / "log"
    secrets = {"KMSERVE_GENERATOR_API_KEY": "sk-canary"}
    with TrainerProcess(python(code), tmp_path, log, grace_seconds=1, secrets=secrets) as trainer:
        assert trainer.wait() == 0
    assert log.read_text().split() == ["here", "sk-canary"]
    assert "KMSERVE_GENERATOR_API_KEY" not in os.environ


def test_no_child_survives_its_context(tmp_path: Path) -> None:
    trainer = TrainerProcess(python("import time; time.sleep(60)"), tmp_path, tmp_path / "log", grace_seconds=1)
    with pytest.raises(ZeroDivisionError), trainer:
        raise ZeroDivisionError
    assert not alive(trainer.pid)


def test_a_killed_parent_closes_the_pipe(tmp_path: Path) -> None:
    """The child of a process that is killed with SIGKILL reads an end of file."""
    parent = f"""
import sys, time
from pathlib import Path
from worker.trainer_process import TrainerProcess
child = TrainerProcess({python(HEARS_ITS_PARENT)!r}, Path({str(tmp_path)!r}), Path({str(tmp_path / "log")!r}), grace_seconds=1)
print(child.pid, flush=True)
time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    assert alive(pid)
    process.kill()
    process.wait()
    process.stdout.close()
    eventually(lambda: not alive(pid))


def test_last_words_are_the_end_of_the_log(tmp_path: Path) -> None:
    code = "import sys; sys.stderr.write('x' * 10000 + 'Segmentation fault\\n')"
    with TrainerProcess(python(code), tmp_path, tmp_path / "log", grace_seconds=1) as trainer:
        assert list(trainer.events()) == []
        assert trainer.wait() == 0
        assert trainer.last_words().endswith("xSegmentation fault")
        assert len(trainer.last_words()) < 5000


def test_what_it_started_goes_with_it(tmp_path: Path) -> None:
    code = "import subprocess, sys, time; print(subprocess.Popen(['sleep', '60']).pid, file=sys.stderr, flush=True); time.sleep(60)"
    log = tmp_path / "log"
    with TrainerProcess(python(code), tmp_path, log, grace_seconds=1):
        eventually(lambda: log.read_text().strip())
    eventually(lambda: not alive(int(log.read_text())))
