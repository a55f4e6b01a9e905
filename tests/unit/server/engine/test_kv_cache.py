from __future__ import annotations

import pytest
import torch

from server.engine.kv_cache import SMALLEST, KvCache, KvPool, KvRow

KEY = torch.zeros(1, 2, 1, 4)


def fill(held: KvRow, number: float, tokens: int = 5) -> None:
    for stored in held.pool.layer(0, KEY, KEY):
        stored[held.row, :, :tokens] = number


def take(cache: KvCache, tokens: int = 10) -> KvRow:
    held = cache.take(tokens)
    assert held is not None
    return held


def test_sequences_of_like_length_share_a_pool() -> None:
    cache = KvCache(10_000)
    short, other, long = take(cache, 10), take(cache, SMALLEST), take(cache, SMALLEST + 1)
    assert short.pool is other.pool is not long.pool
    assert (short.pool.capacity, long.pool.capacity) == (SMALLEST, 2 * SMALLEST)


def test_rows_keep_their_content_while_the_pool_grows() -> None:
    cache = KvCache(10_000)
    rows = []
    for number in range(5):
        rows.append(take(cache))
        fill(rows[-1], number + 1)
    keys, values = rows[0].pool.layer(0, KEY, KEY)
    for number, held in enumerate(rows):
        assert (keys[held.row, :, :5] == number + 1).all()
        assert (values[held.row, :, :5] == number + 1).all()


def test_a_released_row_is_zero_even_after_numbers_that_are_not_finite() -> None:
    cache = KvCache(10_000)
    kept, gone = take(cache), take(cache)
    fill(gone, float("nan"))
    cache.release(gone, 5)
    again = take(cache)
    assert again.row == gone.row
    for stored in again.pool.layer(0, KEY, KEY):
        assert (stored[again.row] == 0).all()
    assert kept.pool is again.pool


def test_the_lowest_free_row_is_taken_so_that_used_rows_stay_dense() -> None:
    pool = KvPool(SMALLEST)
    assert [pool.take() for _ in range(4)] == [0, 1, 2, 3]
    pool.release(1, 0)
    pool.release(3, 0)
    assert pool.high == 3
    assert pool.take() == 1


def test_the_budget_refuses_and_is_given_back() -> None:
    cache = KvCache(2 * SMALLEST)
    first = take(cache)
    take(cache)
    assert cache.take(1) is None
    cache.release(first, 10)
    assert cache.take(1) is not None


def test_a_sequence_of_the_whole_budget_fits() -> None:
    cache = KvCache(100)
    assert take(cache, 100).pool.capacity == 100


def test_a_pool_that_is_kept_outlives_its_rows_with_zeros() -> None:
    cache = KvCache(10_000, keep=True)
    held = take(cache)
    fill(held, 1)
    cache.release(held, 5)
    again = take(cache)
    assert (again.pool, again.pool.memory) == (held.pool, held.pool.memory)
    assert all((stored == 0).all() for stored in again.pool.layer(0, KEY, KEY))


def test_a_kept_pool_makes_room_for_others() -> None:
    cache = KvCache(6 * SMALLEST, keep=True)
    for held in [take(cache) for _ in range(4)]:
        cache.release(held, 0)
    short = take(cache)
    memory = short.pool.memory
    take(cache, 2 * SMALLEST)
    assert short.pool.memory == memory, "four short rows and a long one fit"
    cache.release(short, 0)
    take(cache, 2 * SMALLEST)
    assert short.pool.memory != memory
    assert take(cache).pool is not short.pool


def test_a_pool_that_grows_is_other_memory() -> None:
    cache = KvCache(10_000)
    first = take(cache)
    memory = first.pool.memory
    take(cache)
    assert first.pool.memory != memory


def test_a_pool_goes_with_its_last_row() -> None:
    cache = KvCache(10_000)
    held = take(cache)
    fill(held, 1)
    cache.release(held, 5)
    assert cache.reserved == 0
    assert take(cache).pool is not held.pool


def test_a_pool_that_cannot_grow_stays_as_it_was_and_takes_nothing_of_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is recorded over its memory stays right."""
    cache = KvCache(10_000)
    held = take(cache)
    other = torch.zeros(1, 2, 1, 8)
    before = [held.pool.layer(0, KEY, KEY), held.pool.layer(1, other, other)]
    memory, grown = held.pool.memory, torch.cat

    def exhausted(tensors: tuple[torch.Tensor, ...]) -> torch.Tensor:
        if tensors[0].shape[-1] == 8:
            raise torch.OutOfMemoryError
        return grown(tensors)

    monkeypatch.setattr(torch, "cat", exhausted)
    with pytest.raises(torch.OutOfMemoryError):
        cache.take(10)
    after = [held.pool.layer(0, KEY, KEY), held.pool.layer(1, other, other)]
    assert all(now is then for pair, was in zip(after, before, strict=True) for now, then in zip(pair, was, strict=True))
    assert (held.pool.memory, cache.reserved) == (memory, SMALLEST)
