"""Each objective's gradient in the LoRA factors against finite differences, in float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.support.tiny_document import CHUNKS, Bench, bench, document, float64_base, pair
from worker.training.examples import Example
from worker.training.objectives.registry import OBJECTIVES
from worker.training.recipe import HiddenTerm, ObjectiveName, Positions, Recipe, ScopeName

RECIPE = Recipe(preset="quick", objective="mixed", rank=2, alpha=3.0, chunk_tokens=40)
STEP = 1e-6
PAIRS = [pair(kind, CHUNKS[i % 3], f"Fact {i}.", f"Say {i}.") for kind in ("summary", "question") for i in range(6)]


@pytest.mark.parametrize(
    ("name", "hidden_term", "positions", "scope"),
    [
        ("lm", "mean", "shifted", "all"),
        ("pit", "mean", "shifted", "all"),
        ("ddcd", "mean", "shifted", "all"),
        ("ddcd", "mean_with_embeddings", "unshifted", "all"),
        ("sdcd", "mean", "shifted", "all"),
        ("sdcd", "sum", "shifted", "all"),
        ("mixed", "mean", "shifted", "all"),
        ("mixed", "mean", "shifted", "answer"),
    ],
)
def test_it_is_the_slope_of_the_loss(
    tmp_path: Path, name: ObjectiveName, hidden_term: HiddenTerm, positions: Positions, scope: ScopeName
) -> None:
    """Along a random direction in every factor."""
    recipe = replace(RECIPE, objective=name, hidden_term=hidden_term, positions=positions, scope=scope)
    batch = OBJECTIVES[name].data(document(pairs=PAIRS), recipe, 0).training[:3]
    source = torch.Generator().manual_seed(1)
    with bench(tmp_path, recipe, float64_base()) as tried:
        parameters = tried.student.parameters()
        loss = tried.loss(batch)
        assert loss.dtype == torch.float64
        gradients = torch.autograd.grad(loss, list(parameters.values()))
        assert all(gradient.dtype == torch.float64 and gradient.any() for gradient in gradients)
        for (factor, parameter), gradient in zip(parameters.items(), gradients, strict=True):
            direction = torch.randn(parameter.shape, generator=source, dtype=torch.float64)
            slope = (loss_at(tried, batch, parameter, STEP * direction) - loss_at(tried, batch, parameter, -STEP * direction)) / (2 * STEP)
            assert slope == pytest.approx(float((gradient * direction).sum()), rel=1e-4, abs=1e-6), factor


def loss_at(tried: Bench, batch: Sequence[Example], parameter: nn.Parameter, change: Tensor) -> float:
    """With the parameter changed, which it is no more afterwards."""
    before = parameter.detach().clone()
    with torch.no_grad():
        parameter.add_(change)
        loss = float(tried.loss(batch))
        parameter.copy_(before)
    return loss
