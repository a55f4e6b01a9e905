"""The report for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.serving.arguments import LOAD, MODEL, PREFETCH, PREFIX, TIERS
from benchmarks.serving.figures import FAULTS, MEASURES

_ENDS = ("accepted", "completed", "left", "failed", "left_waiting", "refused_429", "other", "unreachable")


def print_report(console: Console, report: Mapping[str, Any]) -> None:
    for name, value in report["setting"].items():
        shown = ", ".join(f"{key} {each}" for key, each in value.items()) if isinstance(value, Mapping) else value
        console.print(f"{name}: {', '.join(shown) if isinstance(shown, list) else shown}", soft_wrap=True, markup=False)
    if report.get("results"):
        _print_throughput(console, report["results"])
        _print_ratios(console, report["ratios"])
    for part, show in ((TIERS, _tiers), (PREFETCH, _prefetch), (PREFIX, _prefix), (MODEL, _model), (LOAD, _load)):
        if part in report:
            console.print(f"[bold]{part}[/]", *show(report[part]), sep="\n  ")
    for skipped in report["skipped"]:
        console.print(f"left out: {skipped['name']}: {skipped['reason']}", markup=False)


def _print_throughput(console: Console, results: Sequence[Mapping[str, Any]]) -> None:
    table = Table(title="tokens/s, and milliseconds (median / 95th percentile)")
    for name in ("scenario", "x", "modules", "system"):
        table.add_column(name, no_wrap=True)
    for name in ("tokens/s", "first token", "between"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in results:
        early = "" if not row["stopped_early"] else f", {row['stopped_early']} ended early"
        times = [_pair(row["ttft_p50"], row["ttft_p95"]), _pair(row["itl_p50"], row["itl_p95"])]
        table.add_row(*_point(row), row["system"] + early, f"{row['tokens_per_s']:.1f}", *times)
    console.print(table)


def _print_ratios(console: Console, ratios: Sequence[Mapping[str, Any]]) -> None:
    table = Table("scenario", "x", "modules", "system", "against", title="ratios of tokens/s within this run")
    table.add_column("ratio", justify="right")
    for row in ratios:
        table.add_row(*_point(row), row["system"], row["to"], f"{row['ratio']:.2f}")
    console.print(table)


def _point(row: Mapping[str, Any]) -> tuple[str, str, str]:
    return row["scenario"], str(row["concurrency"]), str(row["adapters"])


def _tiers(found: Mapping[str, Any]) -> list[str]:
    speeds = ", ".join(f"{name} {each['tokens_per_s']:.1f}" for name, each in found["throughput"].items())
    return [
        f"{found['modules']} modules of rank {found['rank']}, {found['different_modules_asked']} of them asked for; tokens/s: {speeds}",
        f"against few modules: all in host memory {found['all_of_few']:.2f}, a small host memory {found['small_of_few']:.2f}",
        f"ms: host to slot {_spread(found['host_to_slot'])}, disk to slot {_spread(found['disk_to_slot'])}, "
        f"a decoding step {_spread(found['decode_step'])}, publish to first token {_spread(found['publish_to_first_token'])}",
        *(_step(f"disk, {name}", each) for name, each in found["disk_steps"].items()),
        *(_step(f"disk, the slowest tenth, {name}", each) for name, each in found["disk_steps_slowest"].items()),
    ]


def _prefetch(found: Mapping[str, Any]) -> list[str]:
    times = f"ms: load {_spread(found['load'])}, waited for {_spread(found['waited'])}"
    hidden = f"{found['modules']} cold modules: {found['hidden']:.0%} of their load hidden (wanted {found['wanted']:.0%})"
    return [hidden, times, *(_step(name, each) for name, each in found["steps"].items())]


def _step(name: str, of: Mapping[str, float]) -> str:
    times = ", ".join(f"{measure.replace('_', ' ')} {1000 * of[measure]:.1f}" for measure in MEASURES if measure != FAULTS)
    return f"{name.replace('_', ' ')}: ms {times}; {of[FAULTS]:.0f} page faults"


def _prefix(found: Mapping[str, Any]) -> list[str]:
    return [
        f"{name.replace('_', ' ')}: work/distinct {each['work_per_distinct']} (wanted at most {found['wanted']})"
        for name, each in found.items()
        if isinstance(each, Mapping)
    ]


def _model(found: Mapping[str, Any]) -> list[str]:
    lines = [f"{found['bandwidth_bytes_per_s'] / 1e9:.1f} GB/s, {found['call_seconds'] * 1e6:.2f} us a call"]
    for row in found["steps"]:
        parts = f"memory {_ms(row['memory_s'])}, compute {_ms(row['compute_s'])}, calls {_ms(row['calls_s'])}"
        told = f"predicted {_ms(row['predicted_s'])}, measured {_ms(row['measured_s'])} ms"
        lines.append(f"{row['scenario']} x {row['concurrency']}: {parts}; {told}")
    lines += [
        f"km+ke of base x {row['concurrency']}: predicted {row['predicted']}, measured {row['measured']}" for row in found["km_ke_of_base"]
    ]
    return lines


def _load(found: Mapping[str, Any]) -> list[str]:
    counts = ", ".join(f"{name} {found[name]}" for name in _ENDS)
    memory = ", ".join(f"{when} {(sizes['pss'] or 0) / 2**20:.0f} MiB" for when, sizes in found["memory"].items())
    return [counts, f"PSS {memory}; at rest afterwards: {found['at_rest']}"]


def _pair(median: float | None, high: float | None) -> str:
    return "-" if median is None or high is None else f"{_ms(median)} / {_ms(high)}"


def _spread(found: Mapping[str, float | None]) -> str:
    return _pair(found["p50"], found["p95"])


def _ms(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds * 1e3:.0f}" if seconds >= 0.1 else f"{seconds * 1e3:.3g}"
