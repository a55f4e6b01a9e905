"""How the trainer process ends when its device has no room."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from server.engine import device
from worker import train
from worker.events import ExitCode

GIB = 1 << 30


class OneCore:
    def threads(self) -> int:
        return torch.get_num_threads()

    def active(self) -> nullcontext[None]:
        return nullcontext()


def ending(monkeypatch: pytest.MonkeyPatch, stage: str, *, free: int, mine: int) -> int:
    """The exit code of a run on a device of 80 GiB that finds no room in that stage."""

    def run(directory: Path, spec: dict[str, Any], reporter: train.Reporter, cores: OneCore) -> None:
        reporter(stage, 0, 1, "steps")
        raise torch.OutOfMemoryError

    monkeypatch.setattr(train, "_run", run)
    monkeypatch.setattr(device, "choose_device", torch.device)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free * GIB, 80 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: mine * GIB)
    cores = OneCore()
    return train._guarded(Path(), {"device": "cuda"}, train.Reporter(cores), cores)


def test_a_device_that_others_fill_is_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ending(monkeypatch, train.LOADING, free=2, mine=10) == ExitCode.GPU_BUSY


def test_a_model_that_fills_the_device_by_itself_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ending(monkeypatch, train.LOADING, free=2, mine=77) == ExitCode.OUT_OF_MEMORY


def test_beyond_loading_a_smaller_step_is_tried_first(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ending(monkeypatch, "fitting", free=2, mine=10) == ExitCode.OUT_OF_MEMORY


def test_a_cpu_is_nobody_elses() -> None:
    assert not device.taken_by_others("cpu")
