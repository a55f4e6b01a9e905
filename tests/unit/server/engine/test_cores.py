"""The cores that engine and trainer share."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest

from server.engine import cores
from server.engine.cores import ENGINE, TRAINER, CoreShare


@pytest.mark.parametrize("count", [2, 3, 8])
def test_one_alone_uses_all_and_both_never_more_than_there_are(tmp_path: Path, count: int) -> None:
    engine, trainer = CoreShare(tmp_path, ENGINE, cores=count), CoreShare(tmp_path, TRAINER, cores=count)
    with engine.active():
        assert engine.threads() == count
        with trainer.active():
            assert engine.threads() + trainer.threads() == count
        assert engine.threads() == count
    assert trainer.threads() == count
    engine.close()
    trainer.close()


def test_two_trainers_do_not_wait_for_each_other_and_both_are_seen(tmp_path: Path) -> None:
    engine = CoreShare(tmp_path, ENGINE, cores=4)
    first, second = CoreShare(tmp_path, TRAINER, cores=4), CoreShare(tmp_path, TRAINER, cores=4)
    with first.active():
        with second.active():
            assert engine.threads() == 2
        assert engine.threads() == 2
    assert engine.threads() == 4
    for share in (engine, first, second):
        share.close()


def test_periods_of_several_threads_of_one_process_overlap(tmp_path: Path) -> None:
    engine, trainer = CoreShare(tmp_path, ENGINE, cores=2), CoreShare(tmp_path, TRAINER, cores=2)
    with engine.active():
        with engine.active():
            pass
        assert trainer.threads() == 1
    assert trainer.threads() == 2
    engine.close()
    trainer.close()


def test_a_fixed_number_is_obeyed_and_leaves_the_rest_to_the_other(tmp_path: Path) -> None:
    engine = CoreShare(tmp_path, ENGINE, engine_threads=3, cores=4)
    trainer = CoreShare(tmp_path, TRAINER, engine_threads=3, cores=4)
    with engine.active(), trainer.active():
        assert (engine.threads(), trainer.threads()) == (3, 1)
    assert (engine.threads(), trainer.threads()) == (3, 4)
    engine.close()
    trainer.close()


def test_a_kill_releases_the_lock(tmp_path: Path) -> None:
    script = (
        "import sys, pathlib; from server.engine.cores import *\n"
        "share = CoreShare(pathlib.Path(sys.argv[1]), TRAINER, cores=2)\n"
        "with share.active():\n    print('busy', flush=True); sys.stdin.read()"
    )
    engine = CoreShare(tmp_path, ENGINE, cores=2)
    command = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        gc.collect()
        assert engine.threads() == 1
        process.kill()
        process.wait()
    assert engine.threads() == 2
    engine.close()


def test_only_the_cores_that_the_process_may_use_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "CPU_MAX", tmp_path / "none")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 3, 5}, raising=False)
    share = CoreShare(tmp_path, ENGINE)
    assert share.threads() == 3
    share.close()
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    share = CoreShare(tmp_path, ENGINE)
    assert share.threads() == 7
    share.close()


QUOTAS = {"150000 100000\n": 2, "50000 100000\n": 1, "max 100000\n": 3, "900000 100000\n": 3, "": 3}


@pytest.mark.parametrize(("text", "threads"), QUOTAS.items())
def test_a_containers_quota_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, threads: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2}, raising=False)
    (tmp_path / "cpu.max").write_text(text)
    monkeypatch.setattr(cores, "CPU_MAX", tmp_path / "cpu.max")
    share = CoreShare(tmp_path, ENGINE)
    assert share.threads() == threads
    share.close()
