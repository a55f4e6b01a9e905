"""Checkpoints: everything comes back, and a crash at any moment leaves one that can be read."""

from __future__ import annotations

import os
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.support.unavailable import unavailable
from worker.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint

Made = tuple[dict[str, nn.Parameter], torch.optim.AdamW]


def made(seed: int, steps: int = 2, device: str = "cpu") -> Made:
    """Two parameters after some steps of AdamW, as a fit's."""
    torch.manual_seed(seed)
    parameters = {name: nn.Parameter(torch.randn(3, 2, device=device)) for name in ("one", "two")}
    optimizer = torch.optim.AdamW(parameters.values(), lr=0.1, fused=True)
    for _ in range(steps):
        torch.stack([p.square().sum() for p in parameters.values()]).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
    return parameters, optimizer


def save(directory: Path, number: int) -> Made:
    parameters, optimizer = made(number)
    best = {name: p.detach() + number for name, p in parameters.items()}
    save_checkpoint(directory, Checkpoint(state={"step": number}, best=best), parameters, optimizer)
    return parameters, optimizer


def step_of(directory: Path) -> Any:
    found = load_checkpoint(directory, *made(0))
    return found and found.state["step"]


def test_parameters_optimiser_state_and_best_come_back(tmp_path: Path) -> None:
    saved, optimizer = save(tmp_path / "checkpoint", 7)
    parameters, fresh = made(1, steps=0)
    found = load_checkpoint(tmp_path / "checkpoint", parameters, fresh)
    assert found is not None
    assert found.state == {"step": 7}
    for name, parameter in parameters.items():
        assert torch.equal(parameter, saved[name])
        assert torch.equal(found.best[name], saved[name] + 7)
        assert {key: value.tolist() for key, value in fresh.state[parameter].items()} == {
            key: value.tolist() for key, value in optimizer.state[saved[name]].items()
        }


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_fused_optimiser_goes_on_from_it(tmp_path: Path, device: str) -> None:
    """Its count of steps too must lie where it counts them."""
    if device == "cuda" and not torch.cuda.is_available():
        unavailable("no GPU", ci_has_it=False)
    parameters, optimizer = made(7, device=device)
    save_checkpoint(
        tmp_path / "checkpoint",
        Checkpoint(state={"step": 7}, best={name: p.detach().clone() for name, p in parameters.items()}),
        parameters,
        optimizer,
    )
    resumed, fresh = made(1, steps=0, device=device)
    load_checkpoint(tmp_path / "checkpoint", resumed, fresh)
    assert {state["step"].device.type for state in fresh.state.values()} == {device}
    for given, stepped in ((parameters, optimizer), (resumed, fresh)):
        torch.stack([p.square().sum() for p in given.values()]).sum().backward()  # type: ignore[no-untyped-call]
        stepped.step()
    assert all(torch.equal(resumed[name], parameter) for name, parameter in parameters.items())


def test_there_may_be_none(tmp_path: Path) -> None:
    assert step_of(tmp_path / "checkpoint") is None


def test_the_newest_replaces_the_others(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        save(tmp_path / "checkpoint", number)
    assert step_of(tmp_path / "checkpoint") == 3
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize("crashes", list(product((0, 1, 2), repeat=2)))
def test_a_crash_leaves_the_old_one_or_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crashes: tuple[int, int]) -> None:
    """Twice in a row, each after so many renames: the second crash meets what the first one left."""
    directory = tmp_path / "checkpoint"
    save(directory, 1)
    left = 1
    for number, renames in zip((2, 3), crashes, strict=True):
        with monkeypatch.context() as patched:
            patched.setattr(os, "rename", crashing_after(renames))
            crash(directory, number)
        assert step_of(directory) in (left, number)
        left = step_of(directory)
    save(directory, 4)
    assert step_of(directory) == 4


def crash(directory: Path, number: int) -> None:
    try:
        save(directory, number)
    except InterruptedError:
        return


def crashing_after(count: int) -> Any:
    real, calls = os.rename, [0]

    def rename(source: Path, target: Path) -> None:
        if calls[0] == count:
            raise InterruptedError
        calls[0] += 1
        real(source, target)

    return rename
