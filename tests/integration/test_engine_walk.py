"""The engine's random walk at full length: no wrong answer, nothing shared, nothing left held. A short one runs with the unit tests."""

from __future__ import annotations

import pytest

from tests.support.engine_walk import Walk

STEPS = 10_000


@pytest.mark.slow
def test_ten_thousand_random_steps() -> None:
    walk = Walk(seed=0)
    try:
        walk.run(STEPS)
    finally:
        walk.close()
    stats = walk.engine.stats()
    assert walk.counts["answers"] > 1000
    assert walk.counts["second turns"] > 100
    assert min(walk.counts[action] for action in ("cancel", "evict", "republish", "roll_back", "delete", "forget")) > 50
    assert stats["prefix_hit_tokens"] > 5000
    assert stats["prefix_evicted_tokens"] > 5000
    assert stats["slot_evictions"] > 100
