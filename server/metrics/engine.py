"""The engine's own counts as Prometheus metrics: `stats()` in, families out. Knows no engine; a count that it does not give is left out.

A tier's hits and misses are of requests that look for a module there, the device first; what is missed on one tier is looked for on the
next. Its loads bring a module into it from the tier below. Those of the disk, its evictions and the tier `store` are there where an
object store is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, SummaryMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

Stats = Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class _Count:
    """One family: the name of its count among the stats, or one for each tier. Counters' names end in `_total`."""

    name: str
    about: str
    stat: str | Mapping[str, str]

    def family(self, stats: Stats) -> Metric:
        kind = CounterMetricFamily if self.name.endswith("_total") else GaugeMetricFamily
        if isinstance(self.stat, str):
            return kind(self.name, self.about, value=stats[self.stat]) if self.stat in stats else kind(self.name, self.about)
        family = kind(self.name, self.about, labels=["tier"])
        for tier, stat in self.stat.items():
            if stat in stats:
                family.add_metric([tier], stats[stat])
        return family


def _both(name: str) -> dict[str, str]:
    return {"device": f"slot_{name}", "host": f"host_{name}"}


def _three(name: str) -> dict[str, str]:
    return {**_both(name), "disk": f"disk_{name}"}


COUNTS: Final = (
    _Count(name="kmserve_engine_steps_total", about="Forward passes over a batch.", stat="steps"),
    _Count(name="kmserve_engine_step_seconds_total", about="Seconds spent in them.", stat="step_seconds"),
    _Count(name="kmserve_engine_prompt_tokens_total", about="Prompt tokens computed.", stat="prompt_tokens"),
    _Count(name="kmserve_engine_generated_tokens_total", about="Tokens generated.", stat="generated_tokens"),
    _Count(name="kmserve_engine_ended_total", about="Requests that left the engine, failed ones included.", stat="ended"),
    _Count(name="kmserve_engine_failed_total", about="Requests that ended in an error.", stat="failed"),
    _Count(name="kmserve_engine_running", about="Requests in the batch.", stat="running"),
    _Count(name="kmserve_engine_waiting", about="Requests that wait for a place or for their modules.", stat="waiting"),
    _Count(
        name="kmserve_engine_kv_tokens_reserved", about="Tokens that live requests may take in the KV cache.", stat="kv_tokens_reserved"
    ),
    _Count(
        name="kmserve_engine_load_wait_seconds_total",
        about="Seconds that requests waited for their modules, beyond what a prefetch had hidden.",
        stat="load_wait_seconds",
    ),
    _Count(name="kmserve_prefix_hit_tokens_total", about="Prompt tokens taken over from the prefix cache.", stat="prefix_hit_tokens"),
    _Count(name="kmserve_prefix_stored_tokens_total", about="Tokens put into the prefix cache.", stat="prefix_stored_tokens"),
    _Count(name="kmserve_prefix_evicted_tokens_total", about="Tokens driven out of it for others.", stat="prefix_evicted_tokens"),
    _Count(name="kmserve_prefix_bytes", about="Memory taken by the prefix cache.", stat="prefix_bytes"),
    _Count(
        name="kmserve_tier_hits_total",
        about="Found on this tier.",
        stat={**_both("hits"), "disk": "host_found", "store": "disk_loads"},
    ),
    _Count(
        name="kmserve_tier_misses_total",
        about="Not found on this tier.",
        stat={**_both("misses"), "disk": "host_absent", "store": "store_misses"},
    ),
    _Count(name="kmserve_tier_evictions_total", about="Driven out for others.", stat=_three("evictions")),
    _Count(name="kmserve_tier_bytes", about="Bytes of adapters on this tier.", stat={**_both("bytes"), "disk": "disk_bytes"}),
    _Count(name="kmserve_tier_loads_in_flight", about="Loads into this tier under way or queued.", stat=_three("loading")),
    _Count(name="kmserve_tier_load_failures_total", about="Loads into this tier that failed.", stat=_three("load_failures")),
)
LOAD_SECONDS: Final = "kmserve_tier_load_seconds"


class Counts(Collector):
    """A snapshot."""

    def __init__(self, stats: Stats) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        for count in COUNTS:
            yield count.family(self._stats)
        yield self._load_seconds()

    def _load_seconds(self) -> Metric:
        family = SummaryMetricFamily(LOAD_SECONDS, "Loads into this tier, failed ones included, and their seconds.", labels=["tier"])
        done = {"device": ("slot_misses",), "host": ("host_loads", "host_load_failures"), "disk": ("disk_loads", "disk_load_failures")}
        for tier, seconds in _three("load_seconds").items():
            if seconds in self._stats:
                family.add_metric([tier], int(sum(self._stats[name] for name in done[tier])), self._stats[seconds])
        return family
