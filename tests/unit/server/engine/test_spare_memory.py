"""Memory for the next adapter: each piece is handed out once, and only the size that was last wanted is kept ready."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

import pytest
import torch

from server.engine.spare_memory import SpareMemory


@pytest.fixture
def memory() -> SpareMemory:
    return SpareMemory(torch.float32, locked=False)


def test_nothing_is_kept_ready_before_there_was_need(memory: SpareMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "empty", lambda *_, **__: pytest.fail("memory was taken"))
    memory.renew()


def test_a_renewed_piece_is_the_next_one_of_that_size_and_only_once(memory: SpareMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    first = memory.take(8)
    memory.renew()
    made: list[int] = []
    empty = torch.empty

    def take(elements: int, **named: Any) -> torch.Tensor:
        made.append(elements)
        return empty(elements, **named)

    monkeypatch.setattr(torch, "empty", take)
    second = memory.take(8)
    assert not made
    third = memory.take(8)
    assert made == [8]
    assert len({piece.data_ptr() for piece in (first, second, third)}) == 3


def test_another_size_is_made_anew_and_the_spare_piece_given_up(memory: SpareMemory) -> None:
    memory.take(8)
    memory.renew()
    assert memory.take(5).shape == (5,)
    memory.renew()
    assert memory.take(5).shape == (5,)


def test_one_piece_is_ready_at_most(memory: SpareMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    memory.take(8)
    memory.renew()
    monkeypatch.setattr(torch, "empty", lambda *_, **__: pytest.fail("memory was taken"))
    memory.renew()


def test_its_pages_are_touched_before_it_is_handed_out(memory: SpareMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    memory.take(8)
    monkeypatch.setattr(torch, "empty", lambda elements, **named: torch.full((elements,), 7.0, **named))
    memory.renew()
    assert memory.take(8).tolist() == [0.0] * 8


def test_two_renewals_at_once_make_one_piece(memory: SpareMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    memory.take(8)
    begun, may_end, made = Event(), Event(), []
    empty = torch.empty

    def take(elements: int, **named: Any) -> torch.Tensor:
        made.append(elements)
        begun.set()
        assert may_end.wait(5)
        return empty(elements, **named)

    monkeypatch.setattr(torch, "empty", take)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(memory.renew)
        assert begun.wait(5)
        memory.renew()
        may_end.set()
        first.result(5)
    assert made == [8]


def test_a_piece_that_is_no_longer_of_the_wanted_size_is_replaced(memory: SpareMemory) -> None:
    memory.take(8)
    memory.renew()
    memory.take(5)
    memory.renew()
    spare = memory._spare
    assert spare is not None
    assert spare.shape == (5,)


def test_a_renewal_that_fails_leaves_the_next_one_to_try(memory: SpareMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    memory.take(8)
    with monkeypatch.context() as patched:
        patched.setattr(torch, "empty", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("no memory")))
        with pytest.raises(RuntimeError):
            memory.renew()
    memory.renew()
    assert memory._spare is not None
