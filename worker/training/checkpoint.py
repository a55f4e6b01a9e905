"""Checkpoints of a fit: safetensors and JSON, written whole or not at all. The newest is in `checkpoint/`."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    state: dict[str, Any]
    best: dict[str, Tensor]


def save_checkpoint(
    directory: Path, checkpoint: Checkpoint, parameters: Mapping[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer
) -> None:
    """Replace the checkpoint in `directory`; a crash leaves the old one or the new one."""
    temporary = directory.with_name(directory.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    tensors = {f"best/{name}": tensor for name, tensor in checkpoint.best.items()}
    for name, parameter in parameters.items():
        tensors[f"now/{name}"] = parameter.detach()
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"adam/{key}/{name}"] = value if isinstance(value, Tensor) else torch.tensor(value)
    save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, temporary / "tensors.safetensors")
    (temporary / "state.json").write_text(json.dumps(checkpoint.state))
    old = directory.with_name(directory.name + ".old")
    if directory.exists():  # else `old`, which a crash left, is the only one there is
        shutil.rmtree(old, ignore_errors=True)
        os.rename(directory, old)
    os.rename(temporary, directory)
    shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(directory: Path, parameters: Mapping[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer) -> Checkpoint | None:
    """Put a saved checkpoint back into parameters and optimiser; None if there is none."""
    if not (directory / "state.json").exists():
        directory = directory.with_name(directory.name + ".old")
        if not (directory / "state.json").exists():
            return None
    tensors = load_file(directory / "tensors.safetensors")
    best: dict[str, Tensor] = {}
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[f"now/{name}"])
            best[name] = tensors[f"best/{name}"].to(parameter.device)
            moments = {key: tensors[f"adam/{key}/{name}"] for key in ("step", "exp_avg", "exp_avg_sq") if f"adam/{key}/{name}" in tensors}
            if moments:
                # The step too: a fused optimiser counts it on the device.
                optimizer.state[parameter] = {key: value.to(parameter.device) for key, value in moments.items()}
    return Checkpoint(state=json.loads((directory / "state.json").read_text()), best=best)
