"""The Makefile's own promises: what it says when something is missing, and which steps it takes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.unavailable import unavailable

ROOT = Path(__file__).resolve().parents[3]
REST = "integration, contract and fault tests"


def interpreter(folder: Path, body: str) -> str:
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


def make_venv(python: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [str(ROOT / "scripts/venv.sh"), python, str(folder / "venv")]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_missing_interpreter_is_named(tmp_path: Path) -> None:
    done = make_venv("no-such-python", tmp_path)
    assert done.returncode == 1
    assert "found no 'no-such-python'" in done.stderr


def test_an_old_interpreter_is_refused_with_its_version(tmp_path: Path) -> None:
    python = interpreter(tmp_path, 'case "$1" in -V) echo "Python 3.10.1";; *) exit 1;; esac')
    done = make_venv(python, tmp_path)
    assert done.returncode == 1
    assert "needs Python 3.11 or newer" in done.stderr
    assert "Python 3.10.1" in done.stderr


def test_a_missing_venv_module_prints_the_apt_line(tmp_path: Path) -> None:
    python = interpreter(tmp_path, f'case "$*" in *ensurepip*) exit 1;; *) exec {sys.executable} "$@";; esac')
    done = make_venv(python, tmp_path)
    assert done.returncode == 1
    assert "apt-get install -y python3-venv" in done.stderr
    assert not (tmp_path / "venv").exists()


def test_a_phase_prints_its_time_and_keeps_the_exit_status() -> None:
    done = subprocess.run([str(ROOT / "scripts/phase"), "a name", "sh", "-c", "exit 3"], capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert done.stdout.splitlines()[0] == "==> a name"
    assert done.stdout.splitlines()[1].startswith("<== a name: ")
    assert done.stdout.splitlines()[1].endswith("(failed: 3)")


def stand_in(folder: Path, pip: str, uv: str, config: str = "") -> tuple[int, list[str]]:
    """The exit code of installing the lock with an interpreter whose `-m pip install` and `-m uv` do these things; what was called."""
    calls = folder / "calls"
    body = f"""echo "$*" >> {calls}
case "$*" in *"pip --disable-pip-version-check config list"*) echo "{config}";; *"-m uv "*) {uv};; *"install --quiet uv=="*) {pip};; esac"""
    script = [str(ROOT / "scripts/install_locked.sh"), interpreter(folder, body)]
    done = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.returncode, [line for line in calls.read_text().splitlines() if "requirements.lock" in line]


@pytest.mark.parametrize(
    ("pip", "uv", "config", "tools"),
    [
        ("true", "true", "global.extra-index-url='https://more.example'", ["-m uv pip"]),
        ("true", "exit 2", "", ["-m uv pip", "-m pip"]),
        ("exit 1", "true", "", ["-m pip"]),
        ("true", "true", "global.index-url='https://mirror.example'", ["-m pip"]),
    ],
)
def test_the_lock_is_installed_by_uv_or_else_by_pip(tmp_path: Path, pip: str, uv: str, config: str, tools: list[str]) -> None:
    """Without any dependency, whichever it is."""
    status, calls = stand_in(tmp_path, pip, uv, config)
    assert status == 0
    assert len(calls) == len(tools)
    assert all(call.startswith(tool) and "--no-deps -r requirements.lock" in call for call, tool in zip(calls, tools, strict=True))


@pytest.mark.parametrize(("first", "second", "status"), [(0, 0, 0), (3, 0, 3), (0, 4, 4), (3, 4, 4)])
def test_two_commands_at_once_fail_if_either_does(first: int, second: int, status: int) -> None:
    command = [str(ROOT / "scripts/beside"), "sh", "-c", f"echo one; exit {first}", "--", "sh", "-c", f"echo two; exit {second}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (status, "two\none\n")


def planned(*arguments: str) -> list[str]:
    """The lines that make would run, whether or not these tests were started by make."""
    make = shutil.which("make") or unavailable("no make here")
    environ = {name: value for name, value in os.environ.items() if name not in {"MAKEFLAGS", "MAKELEVEL", "MFLAGS"}}
    return subprocess.run([make, "-n", *arguments], cwd=ROOT, env=environ, capture_output=True, text=True, check=True).stdout.splitlines()


def test_an_installation_takes_three_steps_and_the_users_torch_index(tmp_path: Path) -> None:
    lines = planned("install", f"VENV={tmp_path}/venv", "TORCH_ARGS=--index-url https://wheels.example/cpu")
    installs = [line for line in lines if line.startswith('scripts/phase "install ')]
    assert len(installs) == 3
    assert "pip --disable-pip-version-check install --no-compile --index-url https://wheels.example/cpu torch==" in installs[0]
    assert installs[1].endswith(f"scripts/install_locked.sh {tmp_path}/venv/bin/python")
    assert "--no-deps --no-build-isolation -e . -e clients/python" in installs[2]


def test_every_check_is_a_phase_and_so_is_their_whole(tmp_path: Path) -> None:
    """With -n too make runs the lines that call make again: its phase starts, and in it those of the checks. mypy is beside the suites."""
    lines = planned("check", f"VENV={tmp_path}/venv")
    lines = lines[lines.index("==> all checks") :]
    phases = [line.split('"')[1] for line in lines if line.startswith("scripts/phase ")]
    planned_once = list(dict.fromkeys(name for name in phases if "install" not in name))
    assert planned_once == [
        "virtual environment",
        "ruff format",
        "ruff check",
        "import contracts",
        "tenant lint",
        "unit tests",
        REST,
        "mypy",
    ]
    assert lines[-1].startswith("<== all checks: ")


def test_figures_on_a_gpu_are_one_command_and_those_of_a_data_set_want_it(tmp_path: Path) -> None:
    def phases(*arguments: str) -> list[str]:
        lines = planned("gpu", f"VENV={tmp_path}/venv", *arguments)
        return [line.split('"')[1] for line in lines if "scripts/phase" in line and "install" not in line]

    always = ["virtual environment", "exactness on CUDA", "speed of serving", "demo"]
    assert phases()[: len(always)] == always
    assert 'test -z ""' in "\n".join(planned("gpu", f"VENV={tmp_path}/venv"))
    assert '--data "stories"' in "\n".join(planned("gpu", f"VENV={tmp_path}/venv", "FAIRYTALEQA=stories"))
