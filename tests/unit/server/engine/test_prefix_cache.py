from __future__ import annotations

import random
from collections.abc import Sequence

import torch

from server.engine.kv_cache import KvCache, KvRow
from server.engine.prefix_cache import PrefixCache

BLOCK = 2
HEADS, DIM = 2, 3


def row(cache: KvCache, tokens: int = 64, fill: float | None = None) -> KvRow:
    """A row whose two layers hold a number of their own at each position, or `fill`."""
    held = cache.take(tokens)
    assert held is not None
    like = torch.zeros(1, HEADS, 1, DIM)
    for layer in range(2):
        for side, stored in enumerate(held.pool.layer(layer, like, like)):
            numbers = torch.arange(stored[held.row].numel(), dtype=torch.float32).view(stored[held.row].shape)
            stored[held.row] = numbers + 1000 * layer + 100 * side if fill is None else fill
    return held


def contents(held: KvRow, tokens: int) -> list[torch.Tensor]:
    return [stored[held.row, :, :tokens].clone() for layer in held.pool.layers.values() for stored in layer]


def names(*numbers: int) -> list[bytes]:
    return [number.to_bytes(4, "little") for number in numbers]


def same(ours: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


def test_what_was_kept_comes_back_into_another_row() -> None:
    rows, prefixes = KvCache(1000), PrefixCache(100, BLOCK)
    first, second = row(rows), row(rows, fill=-1.0)
    prefixes.write(names(1, 2, 3), first, 0, "acme")
    assert prefixes.read(names(1, 2, 3), second, 0) == 3
    assert same(contents(first, 6), contents(second, 6))
    assert contents(second, 7)[0][0, 6, 0] == -1.0


def test_a_gap_ends_what_comes_back() -> None:
    rows, prefixes = KvCache(1000), PrefixCache(100, BLOCK)
    prefixes.write(names(1, 2), row(rows), 0, "acme")
    assert prefixes.read(names(1, 9, 2), row(rows), 0) == 1
    assert prefixes.read(names(9, 1), row(rows), 0) == 0


def test_blocks_are_read_and_kept_from_the_middle() -> None:
    rows, prefixes = KvCache(1000), PrefixCache(100, BLOCK)
    first, second = row(rows), row(rows, fill=0.0)
    prefixes.write(names(1, 2, 3), first, 1, "acme")
    assert len(prefixes) == 2
    assert prefixes.read(names(1, 2, 3), second, 1) == 2
    assert same([part[:, 2:6] for part in contents(first, 6)], [part[:, 2:6] for part in contents(second, 6)])


def test_a_rows_later_life_does_not_change_what_was_kept() -> None:
    rows, prefixes = KvCache(1000), PrefixCache(100, BLOCK)
    first = row(rows)
    kept = contents(first, 4)
    prefixes.write(names(1, 2), first, 0, "acme")
    rows.release(first, 64)
    second = row(rows, fill=5.0)
    prefixes.read(names(1, 2), second, 0)
    assert same(kept, contents(second, 4))


def test_the_least_recently_used_leaves_the_end_of_a_chain_first() -> None:
    rows, prefixes = KvCache(1000), PrefixCache(4 * BLOCK, BLOCK)
    prefixes.write(names(1, 2), row(rows), 0, "acme")
    prefixes.write(names(3, 4), row(rows), 0, "acme")
    prefixes.read(names(1, 2), row(rows), 0)
    prefixes.write(names(5), row(rows), 0, "acme")
    assert [key in prefixes for key in names(1, 2, 3, 4, 5)] == [True, True, True, False, True]


def test_more_blocks_than_fit_are_left_out() -> None:
    rows, prefixes = KvCache(1000), PrefixCache(2 * BLOCK, BLOCK)
    prefixes.write(names(1, 2, 3), row(rows), 0, "acme")
    assert [key in prefixes for key in names(1, 2, 3)] == [True, True, False]


def test_forgetting_a_tenant_zeroes_its_blocks_and_leaves_the_others() -> None:
    rows, prefixes = KvCache(1000), PrefixCache(100, BLOCK)
    prefixes.write(names(1, 2), row(rows, fill=7.0), 0, "acme")
    prefixes.write(names(3), row(rows, fill=8.0), 0, "globex")
    prefixes.forget("acme")
    assert [key in prefixes for key in names(1, 2, 3)] == [False, False, True]
    assert not any((stored == 7.0).any() for layer in prefixes._layers.values() for stored in layer)
    assert prefixes.whole()


def test_without_a_budget_nothing_is_kept() -> None:
    rows, prefixes = KvCache(1000), PrefixCache(0, BLOCK)
    prefixes.write(names(1), row(rows), 0, "acme")
    assert len(prefixes) == 0
    assert prefixes.read(names(1), row(rows), 0) == 0


def test_a_million_blocks_leak_nothing() -> None:
    """Chains of many tenants come, are found again, are forgotten; memory stays what the budget allows."""
    rows, prefixes = KvCache(1000), PrefixCache(512 * BLOCK, BLOCK)
    held, source, blocks = row(rows, 512), random.Random(0), 0
    while blocks < 1_000_000:
        chain = names(*range(blocks, blocks + 250))
        prefixes.write(chain, held, 0, source.choice("abc"))
        prefixes.read(chain, held, 0)
        blocks += 250
        if source.random() < 0.01:
            prefixes.forget(source.choice("abc"))
    assert prefixes.whole()
    assert len(prefixes) <= 512
    assert prefixes.stats()["bytes"] == 512 * BLOCK * HEADS * DIM * 4 * 2 * 2
