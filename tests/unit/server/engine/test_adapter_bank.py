from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from server.engine.adapter_bank import AdapterBank, Product

SHAPES = [(6, 4), (4, 6)]


def bank(slots: int = 3) -> AdapterBank:
    return AdapterBank(slots=slots, max_rank=8, shapes=SHAPES, dtype=torch.float32, device=torch.device("cpu"))


def adapter(rank: int, number: float) -> list[Product | None]:
    return [(torch.full((rank, fan_in), number), torch.full((rank, fan_out), number)) for fan_out, fan_in in SHAPES]


def test_a_slot_holds_what_was_loaded() -> None:
    slots = bank()
    slots.load(1, adapter(2, 5.0))
    product = slots.products(1)[0]
    assert product is not None
    down, up = product
    assert (down.shape, up.shape) == ((4, 2), (2, 6))
    assert (down == 5).all()
    assert (up == 5).all()


def test_a_lower_rank_leaves_nothing_of_a_higher_one() -> None:
    slots = bank()
    slots.load(0, adapter(8, 7.0))
    slots.load(0, adapter(2, 1.0))
    slots.load(1, adapter(8, 3.0))
    for down, up in slots.range(0, 2):
        assert (down[0, :, 2:] == 0).all()
        assert (up[0, 2:] == 0).all()
        assert (down[1] == 3).all()


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """Newly allocated memory holds NaN."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


@pytest.mark.usefixtures("poisoned_memory")
def test_a_range_is_readable_where_slots_were_never_used() -> None:
    slots = bank()
    assert torch.empty(1).isnan()
    slots.load(0, adapter(3, 1.0))
    slots.load(2, adapter(5, 2.0))
    for down, up in slots.range(0, 3):
        assert down.isfinite().all()
        assert up.isfinite().all()
        assert (down[0, :, 3:] == 0).all()


@pytest.mark.usefixtures("poisoned_memory")
def test_a_readable_bank_is_zero_behind_every_rank() -> None:
    slots = AdapterBank(slots=3, max_rank=8, shapes=SHAPES, dtype=torch.float32, device=torch.device("cpu"), readable=True)
    slots.load(1, adapter(5, 7.0))
    slots.load(1, adapter(2, 3.0))
    for layer in range(len(SHAPES)):
        for stored in slots.slots_at(layer, 8):
            assert (stored[1, :2] == 3).all()
            assert (stored[1, 2:] == 0).all()
            assert (stored[[0, 2]] == 0).all()
    assert slots.rank(1) == 2


def test_a_layer_without_an_adapter_has_no_product() -> None:
    slots = bank()
    slots.load(0, adapter(4, 9.0))
    slots.load(0, [adapter(2, 1.0)[0], None])
    assert slots.products(0)[1] is None
    down, up = slots.range(0, 1)[1]
    assert (down == 0).all()
    assert (up == 0).all()


def test_clearing_zeroes_everything() -> None:
    slots = bank()
    slots.load(0, adapter(4, 9.0))
    whole = slots.range(0, 1)
    slots.clear(0)
    assert all((a == 0).all() and (b == 0).all() for a, b in whole)
    assert slots.products(0) == [None, None]


@pytest.mark.usefixtures("poisoned_memory")
def test_a_layer_without_an_adapter_stays_readable_as_its_slot_takes_higher_ranks() -> None:
    slots = bank(slots=1)
    for rank in (4, 8, 4):
        slots.load(0, [adapter(rank, 1.0)[0], None])
        for down, up in slots.range(0, 1):
            assert down.isfinite().all()
            assert up.isfinite().all()


def test_a_slot_takes_an_adapter_of_the_same_rank_after_it_was_cleared() -> None:
    slots = bank()
    slots.load(0, adapter(4, 1.0))
    slots.clear(0)
    slots.load(0, adapter(4, 2.0))
    for down, up in slots.range(0, 1):
        assert (down == 2).all()
        assert (up == 2).all()
