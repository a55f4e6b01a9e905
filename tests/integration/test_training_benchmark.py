"""The training benchmark on a random tiny model: its three trainers do the same work, and its figures are of that work."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.training import documents
from benchmarks.training.curve import Curve
from benchmarks.training.documents import trained
from benchmarks.training.machine import operations
from benchmarks.training.ours import run_ours
from benchmarks.training.plain import run_plain
from benchmarks.training.task import BATCH, CHUNKS, SEED, TARGET, WINDOWS, Task, task_of
from server.engine.base_model import BaseModel, adapted_layers
from tests.support.tiny_models import base_of, tiny_llama
from worker.training.fit import batch_at

STEPS, EVERY = 6, 3


@pytest.fixture(scope="module")
def base() -> BaseModel:
    model = tiny_llama()
    model.eval()  # type: ignore[no-untyped-call]
    return dataclasses.replace(base_of(model.requires_grad_(False)), context_limit=1024)


@pytest.fixture(scope="module")
def task(base: BaseModel) -> Task:
    return task_of(base, STEPS, EVERY)


def test_the_task_is_as_large_as_it_says(task: Task) -> None:
    assert len(task.training) == CHUNKS * (WINDOWS - 1)
    assert len(task.held_out) == CHUNKS
    assert {len(example.target) for example in [*task.training, *task.held_out]} == {TARGET}
    assert all(len(example.context) > 400 for example in task.training)
    assert task.recipe.batch_size == BATCH


def test_the_three_trainers_have_one_curve(base: BaseModel, task: Task, tmp_path: Path) -> None:
    curves = {name: Curve() for name in ("plain", "cached", "ours")}
    run_plain(base, task, curves["plain"], cached=False)
    run_plain(base, task, curves["cached"], cached=True)
    run_ours(base, task, curves["ours"], tmp_path)
    curves["exact"] = Curve()
    run_ours(base, task, curves["exact"], tmp_path / "exact", torch.float32)
    assert curves["cached"].losses == pytest.approx(curves["plain"].losses, abs=1e-4)
    assert curves["exact"].losses == pytest.approx(curves["plain"].losses, abs=1e-4)
    assert curves["ours"].losses == pytest.approx(curves["plain"].losses, abs=5e-3), "layers are cached in bfloat16"
    for curve in curves.values():
        assert [step for step, _, _ in curve.held_out] == [3, 6]
        assert 0 < curve.held_out[0][2] < curve.held_out[1][2] <= curve.seconds
    assert curves["ours"].tokens == sum(len(each) for step in range(STEPS) for each in batch_at(task.training, BATCH, SEED, step))
    assert curves["ours"].targets == STEPS * BATCH * TARGET < curves["ours"].computed < curves["ours"].tokens
    assert curves["ours"].seconds > curves["ours"].fit_seconds > 0


def test_the_seconds_to_a_loss_are_those_of_the_first_evaluation_that_found_it() -> None:
    curve = Curve(held_out=[(10, 3.0, 5.0), (20, 2.0, 9.0), (30, 1.0, 14.0)])
    assert curve.seconds_to(2.5) == 9.0
    assert curve.seconds_to(0.5) is None


def test_operations_are_counted_forward_and_backward(base: BaseModel) -> None:
    weights = sum(layer.weight.numel() for layer in adapted_layers(base.model).values())
    width = sum(layer.in_features + layer.out_features for layer in adapted_layers(base.model).values())
    head = base.model.get_output_embeddings().weight.numel()  # type: ignore[no-untyped-call]
    assert operations(base, 10, 3, rank=2) == 10 * (4 * weights + 6 * 2 * width) + 3 * 6 * head


def test_a_trainer_that_fails_is_no_figure(base: BaseModel, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="the trainer ended with 1: "):
        trained(base, str(tmp_path / "absent"), tmp_path, tmp_path / "job", "quick", 1, "The gates are green.")


def test_a_documents_memory_is_its_trainers_alone(base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of the trainer a program that takes 64 MiB and tells of a gate; this process has far more."""
    said = 'import time; taken = bytes(1) * 2**26; time.sleep(0.5); print(\'{"gate": {"passed": true}}\')'
    monkeypatch.setattr(documents, "TRAINER", (sys.executable, "-c", said))
    found = trained(base, "absent", tmp_path, tmp_path / "job", "quick", 1, "The gates are green.")
    assert found["gate"] == {"passed": True}
    assert found["tokens"] == len("The gates are green.")
    assert 64 < found["peak_memory_mb"] < 128
    assert found["seconds"] >= 0.5
