from __future__ import annotations

import random
from collections import Counter

import pytest

from server.engine.fairness import Turns


def test_the_tenant_served_least_goes_first_and_its_oldest_request() -> None:
    turns = Turns()
    turns.charge("acme", 5)
    turns.charge("globex", 3)
    assert turns.first(["acme 1", "globex 1", "globex 2"], lambda name: name.split()[0]) == "globex 1"
    assert turns.first([], str) is None


def test_idling_saves_nothing_up() -> None:
    turns = Turns()
    turns.arrive("acme", [])
    turns.charge("acme", 1000)
    turns.arrive("globex", ["acme"])
    turns.charge("globex", 1)
    assert turns.first(["acme", "globex"], str) == "acme"


def test_a_busy_tenants_next_request_does_not_lift_it() -> None:
    turns = Turns()
    turns.arrive("acme", [])
    turns.charge("acme", 1000)
    turns.arrive("globex", ["acme"])
    turns.charge("globex", 10)
    turns.arrive("globex", ["acme", "globex"])
    turns.charge("acme", 5)
    assert turns.first(["globex", "acme"], str) == "acme"


def test_idle_tenants_are_forgotten() -> None:
    turns = Turns()
    for number in range(1000):
        turns.arrive(f"tenant-{number}", [])
        turns.charge(f"tenant-{number}", 1)
    assert len(turns._served) == 1


@pytest.mark.parametrize("seed", range(5))
def test_what_two_waiting_tenants_were_served_differs_by_the_stated_bound(seed: int) -> None:
    """One tenant asks a hundred times as much as the other; both always have requests waiting."""
    source, turns, served = random.Random(seed), Turns(), Counter[str]()
    longest, places = 100, 4
    for tenant in ("greedy", "modest"):
        turns.arrive(tenant, ["greedy", "modest"])
    running: list[tuple[str, int]] = []
    for _ in range(5000):
        while len(running) < places:
            chosen = turns.first(["greedy"] * 100 + ["modest"], str)
            assert chosen is not None
            prompt = source.randrange(1, longest)
            turns.charge(chosen, prompt)
            served[chosen] += prompt
            running.append((chosen, source.randrange(1, longest)))
        for tenant, _ in running:
            turns.charge(tenant, 1)
            served[tenant] += 1
        running = [(tenant, left - 1) for tenant, left in running if left > 1]
        assert abs(served["greedy"] - served["modest"]) <= 2 * max(longest, 2 * places * longest)
