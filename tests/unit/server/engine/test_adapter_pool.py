from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from server.engine.adapter_bank import AdapterBank
from server.engine.adapter_pool import AdapterPool, SlotPool
from server.engine.host_cache import AdapterKey, HostAdapter
from server.engine.request import Scope


def bank(slots: int) -> AdapterBank:
    return AdapterBank(slots=slots, max_rank=2, shapes=[(3, 3)], dtype=torch.float32, device=torch.device("cpu"))


def adapter(digest: str, number: float = 1.0, w_km: tuple[float, ...] | None = None, w_ke: tuple[float, ...] | None = None) -> HostAdapter:
    pair = (torch.full((2, 3), number), torch.full((2, 3), number))
    key = AdapterKey(directory=Path(digest), digest=digest, composition=None if w_ke is None else "composition")
    return HostAdapter(key=key, scope=Scope.ANSWER, scaling=2.0, tensors=(pair,), w_km=w_km, w_ke=w_ke, nbytes=48)


def taken(pool: SlotPool, digest: str) -> int:
    slot = pool.take(adapter(digest))
    assert slot is not None
    return slot


def test_the_same_adapter_is_loaded_once() -> None:
    pool = SlotPool(bank(2))
    assert taken(pool, "a") == taken(pool, "a")
    assert (pool.hits, pool.misses) == (1, 1)


def test_the_least_recently_used_idle_slot_is_reused() -> None:
    pool = SlotPool(bank(2))
    first, second = taken(pool, "a"), taken(pool, "b")
    pool.release(first)
    pool.release(second)
    pool.release(taken(pool, "a"))
    assert taken(pool, "c") == second
    assert pool.evictions == 1


def test_a_held_slot_is_never_reused() -> None:
    pool = SlotPool(bank(1))
    slot = taken(pool, "a")
    assert pool.take(adapter("b")) is None
    pool.release(slot)
    assert taken(pool, "b") == slot


def test_eviction_zeroes_an_idle_slot_at_once() -> None:
    pool = SlotPool(bank(1))
    pool.release(taken(pool, "a"))
    whole = pool.bank.range(0, 1)
    pool.evict(Path("a"))
    assert (whole[0][0] == 0).all()
    assert len(pool) == 0


def test_eviction_waits_for_the_last_user_and_new_ones_load_anew() -> None:
    pool = SlotPool(bank(2))
    old = taken(pool, "a")
    taken(pool, "a")
    pool.evict(Path("a"))
    new = taken(pool, "a")
    assert new != old
    assert pool.take(adapter("b")) is None, "the doomed slot is still in use"
    pool.release(old)
    assert pool.bank.products(old)[0] is not None
    pool.release(old)
    assert pool.bank.products(old)[0] is None
    assert taken(pool, "b") == old


def test_equal_bytes_in_two_directories_have_a_slot_each_and_are_evicted_apart() -> None:
    pool = SlotPool(bank(2))
    mine = taken(pool, "a")
    twin = adapter("a")
    theirs = pool.take(replace(twin, key=replace(twin.key, directory=Path("theirs"))))
    assert theirs is not None
    assert theirs != mine
    pool.release(mine)
    pool.release(theirs)
    pool.evict(Path("a"))
    assert pool.bank.products(mine)[0] is None
    assert pool.bank.products(theirs)[0] is not None


def test_a_module_alone_counts_fully() -> None:
    outfit = AdapterPool(bank(1), bank(1)).wear(adapter("km"), None)
    assert outfit is not None
    assert outfit.module is not None
    assert (outfit.module.factors, outfit.module.scope, outfit.extractor) == ((2.0,), Scope.ANSWER, None)


def test_the_extractors_composition_weighs_both() -> None:
    outfit = AdapterPool(bank(1), bank(1)).wear(adapter("km"), adapter("ke", w_km=(0.5,), w_ke=(0.25,)))
    assert outfit is not None
    assert outfit.module is not None
    assert outfit.extractor is not None
    assert outfit.module.factors == (1.0,)
    assert outfit.extractor.factors == (0.5,)


def test_without_a_slot_for_both_neither_is_held() -> None:
    pool = AdapterPool(bank(2), bank(1))
    assert pool.wear(None, adapter("ke", w_ke=(1.0,))) is not None
    assert pool.wear(adapter("km"), adapter("other", w_ke=(1.0,))) is None
    pool.evict(Path("km"))
    assert pool.modules.bank.products(0)[0] is None, "nobody holds the module"


@pytest.mark.parametrize("digest", ["km", "ke"])
def test_eviction_reaches_modules_and_extractors(digest: str) -> None:
    pool = AdapterPool(bank(1), bank(1))
    outfit = pool.wear(adapter("km"), adapter("ke", w_ke=(1.0,)))
    assert outfit is not None
    pool.release(outfit)
    pool.evict(Path(digest))
    assert pool.stats()["module_slots"] + pool.stats()["extractor_slots"] == 1
