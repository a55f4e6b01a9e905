from __future__ import annotations

import pytest
import torch
from torch import Tensor

from server.engine.adapter_bank import AdapterBank
from server.engine.routed_lora import Route, Run, Worn
from server.engine.slot_lanes import SlotLanes

IN, OUT, LANES = 5, 7, 8


def filled_bank(slots: int, scale: float = 1.0) -> AdapterBank:
    bank = AdapterBank(slots=slots, max_rank=8, shapes=[(OUT, IN)], dtype=torch.float64, device=torch.device("cpu"), readable=True)
    torch.manual_seed(1)
    for slot in range(slots):
        rank = 1 + slot % 4
        bank.load(slot, [(scale * torch.randn(rank, IN, dtype=torch.float64), torch.randn(rank, OUT, dtype=torch.float64))])
    return bank


def worn(slot: int, lane: int, factor: float = 0.5) -> Run:
    return Run(worn=Worn(slot=slot, factors=(factor,)), start=lane, end=lane + 1)


def lanes_of(bank: AdapterBank) -> SlotLanes:
    return SlotLanes(bank, LANES, 4)


def added(lanes: SlotLanes, runs: list[Run], x: Tensor) -> Tensor:
    y = torch.zeros(1, LANES, OUT, dtype=torch.float64)
    lanes.fill(runs)
    lanes.begin()
    lanes.add(0, x, y)
    return y


PLANS = {
    "one lane": [worn(2, 5)],
    "a slot shared": [worn(1, lane, lane / 2) for lane in range(LANES)],
    "a slot each": [worn(2 - lane % 3, lane) for lane in range(LANES)],
    "bare lanes between": [worn(0, 1), worn(2, 6), worn(0, 7, 2.0)],
}


@pytest.mark.parametrize("slots", [3, 12])
@pytest.mark.parametrize("runs", PLANS.values(), ids=PLANS)
def test_lanes_get_what_a_route_gives_them(slots: int, runs: list[Run]) -> None:
    bank = filled_bank(slots)
    torch.manual_seed(2)
    x = torch.randn(1, LANES, IN, dtype=torch.float64)
    expected = torch.zeros(1, LANES, OUT, dtype=torch.float64)
    Route(bank, runs).add(0, x, expected)
    assert torch.allclose(added(lanes_of(bank), runs, x), expected, atol=1e-12)


def test_a_new_plan_replaces_the_old_one() -> None:
    bank = filled_bank(12)
    lanes, x = lanes_of(bank), torch.ones(1, LANES, IN, dtype=torch.float64)
    added(lanes, PLANS["a slot each"], x)
    again = added(lanes, PLANS["one lane"], x)
    assert torch.equal(again, added(lanes_of(bank), PLANS["one lane"], x))
    assert (again[0, :5] == 0).all()


@pytest.mark.parametrize("slots", [3, 12])
def test_what_is_not_finite_stays_in_its_own_lane(slots: int) -> None:
    bank = filled_bank(slots, scale=1e308)
    x = torch.full((1, LANES, IN), 1e6, dtype=torch.float64)
    y = added(lanes_of(bank), [worn(1, 3)], x)
    assert not y[0, 3].isfinite().all()
    assert (torch.cat((y[0, :3], y[0, 4:])) == 0).all()
