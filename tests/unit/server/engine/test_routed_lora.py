from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from server.engine.adapter_bank import AdapterBank, Product
from server.engine.base_model import adapted_layers
from server.engine.routed_lora import Route, RoutedLinear, Router, Run, Worn, install, installed, uninstall
from server.engine.thin import forward_of
from tests.support.tiny_models import tiny_base

IN, OUT, SLOTS = 5, 7, 12


def adapters() -> list[Product]:
    torch.manual_seed(1)
    ranks = [1 + slot % 4 for slot in range(SLOTS)]
    return [(torch.randn(rank, IN, dtype=torch.float64), torch.randn(rank, OUT, dtype=torch.float64)) for rank in ranks]


def filled_bank() -> AdapterBank:
    bank = AdapterBank(slots=SLOTS, max_rank=4, shapes=[(OUT, IN)], dtype=torch.float64, device=torch.device("cpu"))
    for slot, adapter in enumerate(adapters()):
        bank.load(slot, [adapter])
    return bank


def row_by_row(runs: list[Run], x: Tensor) -> Tensor:
    y = torch.zeros(x.shape[1], OUT, dtype=torch.float64)
    for run in runs:
        a, b = adapters()[run.worn.slot]
        for row in range(run.start, run.end):
            y[row] += run.worn.factors[0] * (x[0, row] @ a.T @ b)
    return y


def worn(slot: int, factor: float = 1.0) -> Worn:
    return Worn(slot=slot, factors=(factor,))


PLANS = {
    "one row": [Run(worn=worn(3), start=2, end=3)],
    "one slot for all": [Run(worn=worn(3, 0.5), start=0, end=30)],
    "a few slots": [Run(worn=worn(slot), start=slot, end=slot + 1) for slot in range(3)],
    "neighbouring slots, a row each": [Run(worn=worn(slot, slot / 2), start=slot, end=slot + 1) for slot in range(6)],
    "slots with gaps between them": [Run(worn=worn(slot), start=slot, end=slot + 1) for slot in (1, 2, 4, 6, 7, 9)],
    "slots in another order than rows": [Run(worn=worn(slot), start=row, end=row + 1) for row, slot in enumerate((5, 1, 3, 2, 0, 4))],
    "runs of different lengths": [Run(worn=worn(slot), start=4 * slot, end=4 * slot + 1 + slot % 3) for slot in range(6)],
    "long and short runs": [
        *(Run(worn=worn(slot), start=slot, end=slot + 1) for slot in range(6)),
        Run(worn=worn(2), start=8, end=20),
        Run(worn=worn(7), start=20, end=30),
    ],
    "one slot with two weights": [
        *(Run(worn=worn(slot), start=slot, end=slot + 1) for slot in range(6)),
        Run(worn=worn(2, 0.25), start=6, end=7),
        Run(worn=worn(2, 0.75), start=7, end=8),
    ],
    "slots far apart": [Run(worn=worn(slot), start=row, end=row + 1) for row, slot in enumerate((0, 1, 2, 10, 11))],
}


@pytest.mark.parametrize("runs", PLANS.values(), ids=PLANS)
def test_each_row_gets_its_own_adapter_and_bare_rows_nothing(runs: list[Run]) -> None:
    torch.manual_seed(2)
    x = torch.randn(1, 32, IN, dtype=torch.float64)
    y = torch.zeros(1, 32, OUT, dtype=torch.float64)
    Route(filled_bank(), runs).add(0, x, y)
    assert torch.allclose(y[0], row_by_row(runs, x), atol=1e-12)


def test_a_step_without_adapters_computes_the_layer_alone() -> None:
    linear = nn.Linear(IN, OUT)
    x = torch.randn(1, 3, IN)
    assert torch.equal(RoutedLinear(linear, 0, Router())(x), forward_of(linear)(x))


def test_an_installed_model_looks_the_same_and_uninstalling_restores_it() -> None:
    base = tiny_base()
    modules, weights = dict(base.model.named_modules()), {name: id(weight) for name, weight in base.model.named_parameters()}
    layers = adapted_layers(base.model)
    install(base.model, layers, Router())
    assert installed(base.model)
    assert list(adapted_layers(base.model)) == list(layers)
    assert {name: id(weight) for name, weight in base.model.named_parameters()} == weights
    uninstall(base.model, layers)
    assert not installed(base.model)
    assert dict(base.model.named_modules()) == modules
