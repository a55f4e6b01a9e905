"""How fast this machine multiplies matrices, how many operations a step of the student takes, and how much memory a process."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from server.engine.base_model import BaseModel, adapted_layers
from worker.training.states import head_of

ROWS = 512
_ROUNDS = 7
_REPEATS = 20


def operations(base: BaseModel, tokens: int, targets: int, rank: int) -> int:
    """Of matrix products that the student's steps cannot do without, for `tokens` that are read and `targets` of them that are learned.

    A frozen layer has two of 2 * in * out a token, forward and backward, for no weight needs a gradient; a LoRA of rank r takes
    6 * r * (in + out); the head has three of 2 * width * vocabulary a target: the student's logits, the teacher's, and the way back.
    Attention, a few percent more, is left out.
    """
    layers = adapted_layers(base.model).values()
    frozen = sum(4 * layer.in_features * layer.out_features for layer in layers)
    lora = sum(6 * rank * (layer.in_features + layer.out_features) for layer in layers)
    return tokens * (frozen + lora) + targets * 6 * head_of(base.model).weight.numel()


def matmul_rate(base: BaseModel) -> float:
    """Operations a second of ROWS rows by the model's largest layer, the best of several rounds."""
    layer = max(adapted_layers(base.model).values(), key=lambda each: each.weight.numel())
    x = torch.randn(ROWS, layer.in_features, dtype=base.dtype, device=base.device)
    weight = layer.weight.detach()
    best = min(_seconds(x, weight) for _ in range(_ROUNDS))
    return 2 * x.numel() * layer.out_features / best


def peak_mb(pid: int) -> float:
    """The most memory that a process has had so far; 0 of one that has ended, and where the system does not tell. What the resource
    module and `wait4` tell begins with what its parent had."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")), 0.0)


def _seconds(x: torch.Tensor, weight: torch.Tensor) -> float:
    started = time.perf_counter()
    for _ in range(_REPEATS):
        x @ weight.T
    return (time.perf_counter() - started) / _REPEATS
