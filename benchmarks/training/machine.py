"""How fast this machine multiplies matrices, and how many operations a step of the student takes."""

from __future__ import annotations

import time

import torch

from server.engine.base_model import BaseModel, adapted_layers

ROWS = 512
_ROUNDS = 7
_REPEATS = 20


def operations_per_token(base: BaseModel) -> int:
    """Of a student's step, forward and backward, in the frozen layers: two products of 2 * in * out each, for no weight needs a gradient.
    Attention, LoRA and head, some percent more, are left out: the share is of what cannot be avoided."""
    return sum(4 * layer.in_features * layer.out_features for layer in adapted_layers(base.model).values())


def matmul_rate(base: BaseModel) -> float:
    """Operations a second of ROWS rows by the model's largest layer, the best of several rounds."""
    layer = max(adapted_layers(base.model).values(), key=lambda each: each.weight.numel())
    x = torch.randn(ROWS, layer.in_features, dtype=base.dtype, device=base.device)
    weight = layer.weight.detach()
    best = min(_seconds(x, weight) for _ in range(_ROUNDS))
    return 2 * x.numel() * layer.out_features / best


def _seconds(x: torch.Tensor, weight: torch.Tensor) -> float:
    started = time.perf_counter()
    for _ in range(_REPEATS):
        x @ weight.T
    return (time.perf_counter() - started) / _REPEATS
