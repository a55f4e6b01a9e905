from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig

from benchmarks.serving.arguments import QUICK
from benchmarks.serving.bases import random_base
from benchmarks.serving.cost_model import Machine, Step, explained, step_of
from benchmarks.serving.figures import BASE, KM, KM_KE, Cell, Trace, cells
from benchmarks.serving.load import memory, outcome
from benchmarks.serving.prefix import distinct_tokens, measure_prefix
from benchmarks.serving.shelf import adapter_bytes, make_modules, make_shelf
from benchmarks.serving.systems import Workshop, absent, attempted, ready
from benchmarks.serving.throughput import measured
from benchmarks.serving.tiers import measure_tiers, rank_that_fits
from benchmarks.serving.vllm import body_of, environment
from benchmarks.serving.workload import Job, jobs, question_source
from server.engine.base_model import BaseModel
from server.engine.prompt import Prompt
from tests.support.byte_tokenizer import byte_tokenizer
from tests.support.tiny_models import tiny_base

TINY = replace(QUICK, concurrency=(1, 2), warm_tokens=2, new_tokens=3, tier_modules=20, tier_requests=4, tier_tokens=2, swaps=2)
PROMPT = Prompt(bare=(1, 2), adapted=(3,))


@dataclass(frozen=True)
class TinyBases:
    """In place of the prepared model of a run."""

    random: bool = False
    device: str = "cpu"
    dtype: torch.dtype = torch.float32

    def load(self) -> BaseModel:
        return tiny_base()


def workshop(folder: Path, **changes: Any) -> Workshop:
    bases: Any = TinyBases(**changes)
    return Workshop(bases=bases, size=TINY, threads=1, folder=folder)


class Slow:
    """Slower than anybody has the patience for."""

    name = "vllm-cpu"

    def __init__(self) -> None:
        self.rounds = 0

    def run(self, jobs: Sequence[Job]) -> list[Trace]:
        self.rounds += 1
        return [Trace(submitted=0.0, finished=1.0, pieces=(1.0,), tokens=job.new_tokens) for job in jobs]

    def close(self) -> None: ...


class Failing:
    """Somebody else's system that breaks at its second round."""

    name = "transformers"

    def __init__(self) -> None:
        self.rounds = 0

    def run(self, jobs: Sequence[Job]) -> list[Trace]:
        self.rounds += 1
        if self.rounds > 1:
            raise RuntimeError("out of luck")
        return [Trace(submitted=0.0, finished=1.0, pieces=(1.0,), tokens=job.new_tokens) for job in jobs]

    def close(self) -> None: ...


def test_our_engine_and_a_static_batch_run_side_by_side(tmp_path: Path) -> None:
    shop = workshop(tmp_path)
    shelf = make_shelf(shop.plain(), tmp_path / "shelf", TINY.most_modules)
    with ready(shop, ("kmserve", "transformers", "vllm-cpu"), shelf, lambda _: None) as systems:
        rows = measured(shop, systems, cells(TINY.concurrency), lambda _: None)
    assert {(row["system"], row["scenario"], row["concurrency"], row["adapters"]) for row in rows} == {
        ("transformers", BASE, 1, 0),
        ("transformers", BASE, 2, 0),
        *(("kmserve", cell.scenario, cell.concurrency, cell.adapters) for cell in cells(TINY.concurrency)),
    }
    assert all(row["tokens_per_s"] > 0 and row["ttft_p50"] > 0 and row["stopped_early"] == 0 for row in rows)
    assert [skipped["name"] for skipped in shop.skipped] == ["vllm-cpu"]


def test_tiers_are_measured_on_a_tiny_model(tmp_path: Path) -> None:
    shop = workshop(tmp_path)
    tiers = measure_tiers(shop, lambda _: None)
    assert (tiers["modules"], tiers["requests"]) == (20, 4)
    assert tiers["throughput"].keys() == {"few", "all", "small"}
    assert tiers["host_to_slot"]["p50"] > 0
    assert tiers["publish_to_first_token"]["p95"] > 0


def test_a_failing_peer_is_left_out_and_told_once(tmp_path: Path) -> None:
    shop, failing = workshop(tmp_path), Failing()
    rows = measured(shop, [failing], [Cell(scenario=BASE, concurrency=count, adapters=0) for count in (1, 2)], lambda _: None)
    assert rows == []
    assert failing.rounds == 2
    assert shop.skipped == [{"name": "transformers", "reason": "RuntimeError: out of luck"}]


def test_a_system_that_is_too_slow_is_left_out_of_what_asks_more_of_it(tmp_path: Path) -> None:
    shop = workshop(tmp_path)
    shop.size = replace(TINY, patience=-1.0)
    slow = Slow()
    points = [Cell(scenario=name, concurrency=count, adapters=0 if name == BASE else 1) for count in (1, 2) for name in (BASE, KM)]
    assert measured(shop, [slow], points, lambda _: None) == []
    assert slow.rounds == 2  # the warm-up of each kind at the smaller concurrency
    assert [each["name"] for each in shop.skipped] == ["vllm-cpu at base, 1 at once", "vllm-cpu at km, 1 at once, 1 modules"]


def test_our_own_failure_ends_the_run(tmp_path: Path) -> None:
    def broken() -> None:
        raise RuntimeError("ours")

    with pytest.raises(RuntimeError, match="ours"):
        attempted("kmserve-http", workshop(tmp_path), broken)


def test_points_after_the_time_are_left_out(tmp_path: Path) -> None:
    shop = workshop(tmp_path)
    shop.started -= TINY.throughput_seconds + 1
    assert measured(shop, [Failing()], [Cell(scenario=BASE, concurrency=1, adapters=0)], lambda _: None) == []
    assert shop.skipped == [{"name": "base, 1 at once", "reason": "the time for throughput was up"}]


def test_systems_that_cannot_be_had_say_why(tmp_path: Path) -> None:
    assert "--vllm-python" in (absent("vllm-cpu", workshop(tmp_path)) or "")
    assert "--model" in (absent("kmserve-http", workshop(tmp_path, random=True)) or "")
    assert absent("kmserve", workshop(tmp_path, random=True)) is None


def test_every_request_of_a_round_has_its_own_prompt_and_modules_come_in_turn() -> None:
    tokenizer = byte_tokenizer()
    made = jobs(tokenizer, KM_KE, 2, 4, question_source(tokenizer), 3)
    assert [job.module for job in made] == [0, 1, 0, 1]
    assert all(job.extractor for job in made)
    assert len({job.prompt.ids for job in made}) == 4
    [bare] = jobs(tokenizer, BASE, 0, 1, question_source(tokenizer), 3)
    assert (bare.module, bare.extractor) == (None, False)


def test_further_modules_are_links_in_directories_of_their_own(tmp_path: Path) -> None:
    refs = make_modules(tiny_base(), tmp_path, 5, rank=2, distinct=2)
    assert len({ref.directory for ref in refs}) == 5
    assert len({ref.digest for ref in refs}) == 2
    assert (refs[0].directory / "manifest.json").stat().st_nlink == 3


def test_the_rank_is_halved_until_the_modules_fit() -> None:
    base = tiny_base()
    assert rank_that_fits(base, 10, 10**12) == 16
    assert rank_that_fits(base, 10, 2 * 10 * adapter_bytes(base, 4)) == 4
    assert rank_that_fits(base, 10, 0) == 1


def test_vllm_is_asked_for_exactly_so_many_tokens_of_a_folded_module() -> None:
    body = body_of(Job(question="?", prompt=PROMPT, module=3, extractor=True, new_tokens=5))
    assert (body["model"], body["prompt"], body["max_tokens"], body["ignore_eos"]) == ("km+ke-3", [1, 2, 3], 5, True)
    assert body_of(Job(question="?", prompt=PROMPT, module=3))["model"] == "km-3"
    assert body_of(Job(question="?", prompt=PROMPT))["model"] == "base"


def test_vllm_does_not_see_our_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/ours")
    made = environment(2)
    assert "PYTHONPATH" not in made
    assert (made["VLLM_ALLOW_RUNTIME_LORA_UPDATING"], made["OMP_NUM_THREADS"]) == ("True", "2")


def test_the_crowd_is_counted_by_how_it_ended() -> None:
    told = outcome(Counter({"200": 5, "429": 2, "503": 1, "completed": 3, "left": 2, "unreachable": 1}))
    assert told == {
        "accepted": 5,
        "refused_429": 2,
        "other": {"503": 1},
        "unreachable": 1,
        "completed": 3,
        "left": 2,
        "failed": 0,
        "left_waiting": 0,
    }


def test_memory_is_told_where_the_system_tells() -> None:
    assert memory(2**30) == {"rss": None, "pss": None}
    if Path("/proc/self/smaps_rollup").exists():
        assert (memory(os.getpid())["rss"] or 0) > 2**20


def test_shared_beginnings_count_once_and_never_across_tenants() -> None:
    assert distinct_tokens([("a", [1, 2, 3]), ("a", [1, 2, 4]), ("a", [1, 2])]) == 4
    assert distinct_tokens([("a", [1, 2]), ("b", [1, 2])]) == 4
    assert distinct_tokens([("a", [1, 2]), ("a", [2, 1])]) == 4


def test_a_step_is_its_larger_part_and_its_calls() -> None:
    machine = Machine(bytes_per_s=100.0, call_seconds=0.5)
    step = Step(weight_bytes=100, lora_bytes=60, kv_bytes=40, operations=30, calls=4)
    assert step.seconds(machine, operations_per_s=10.0) == 3.0 + 2.0
    assert step.seconds(machine, operations_per_s=1000.0) == 2.0 + 2.0


def test_what_a_step_moves_grows_with_what_it_wears() -> None:
    base = tiny_base()
    bare = step_of(base, Cell(scenario=BASE, concurrency=4, adapters=0), 100, 10)
    km = step_of(base, Cell(scenario=KM, concurrency=4, adapters=2), 100, 10)
    both = step_of(base, Cell(scenario=KM_KE, concurrency=4, adapters=2), 100, 10)
    assert bare.lora_bytes == 0
    assert (km.lora_bytes, both.lora_bytes) == (2 * adapter_bytes(base), 3 * adapter_bytes(base))
    assert bare.weight_bytes == km.weight_bytes == both.weight_bytes
    assert bare.operations < km.operations < both.operations
    assert bare.calls == 100 < km.calls < both.calls


def test_ratios_of_steps_are_explained_by_concurrency() -> None:
    rows = [
        {"scenario": BASE, "concurrency": 4, "predicted_s": 2.0, "measured_s": 4.0},
        {"scenario": KM_KE, "concurrency": 4, "predicted_s": 3.0, "measured_s": 5.0},
    ]
    assert explained(rows) == [{"concurrency": 4, "predicted": 1.5, "measured": 1.25}]


def test_a_random_base_serves_and_never_ends_an_answer() -> None:
    shape: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    heads: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2}
    base = random_base(byte_tokenizer(), LlamaConfig(vocab_size=260, max_position_embeddings=128, **shape, **heads), "cpu", torch.float32)
    assert (base.eos_ids, base.context_limit, base.model.dtype) == (frozenset(), 128, torch.float32)
    logits = base.model(input_ids=torch.tensor([[1, 2]])).logits
    assert torch.isfinite(logits).all()


def test_prefix_work_is_told_for_one_tenant_and_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.serving.prefix.QUESTIONS", 8)
    monkeypatch.setattr("benchmarks.serving.prefix.DOCUMENT_TOKENS", 20)
    told = measure_prefix(workshop(tmp_path), lambda _: None)
    one, two = told["one_by_one"], told["two_tenants"]
    assert one["distinct"] < two["distinct"] <= two["prompt_tokens"]
    assert one["work"] >= one["distinct"]
