from __future__ import annotations

from collections import Counter
from itertools import islice

import pytest

from benchmarks.serving.figures import (
    BASE,
    KM,
    KM_KE,
    Cell,
    Round,
    Trace,
    cells,
    in_order,
    percentile,
    ratios,
    result,
    round_of,
    rounded,
    spread,
    zipf,
)
from benchmarks.serving.workload import questions

POINT = Cell(scenario=KM, concurrency=4, adapters=1)
COLUMNS = {"system", "scenario", "concurrency", "adapters", "tokens_per_s", "ttft_p50", "ttft_p95", "itl_p50", "itl_p95"}


def trace(submitted: float, *pieces: float, tokens: int | None = None) -> Trace:
    return Trace(submitted=submitted, finished=pieces[-1], pieces=pieces, tokens=len(pieces) if tokens is None else tokens)


def row(system: str, scenario: str, speed: float, concurrency: int = 4, adapters: int = 1) -> dict[str, object]:
    cell = Cell(scenario=scenario, concurrency=concurrency, adapters=0 if scenario == BASE else adapters)
    return result(system, cell, [Round(tokens_per_s=speed, ttft=(), itl=(), stopped_early=0)])


def test_percentiles_are_interpolated() -> None:
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert percentile([1.0, 2.0], 0.95) == pytest.approx(1.95)
    assert percentile([7.0], 0.95) == 7.0
    assert percentile([], 0.5) is None
    assert spread([0.0, 1.0]) == {"p50": 0.5, "p95": 0.95}


def test_figures_have_four_digits() -> None:
    assert rounded(123456.0) == 123500.0
    assert rounded(0.000123456) == 0.0001235
    assert rounded(None) is None


def test_a_round_counts_from_the_first_request_to_the_last_token() -> None:
    found = round_of([trace(10.0, 10.5, 11.0), trace(10.1, 10.7, 12.0)], 2)
    assert found.tokens_per_s == pytest.approx(4 / 2.0)
    assert found.ttft == pytest.approx((0.5, 0.6))
    assert found.itl == pytest.approx((0.5, 1.3))
    assert found.stopped_early == 0


def test_answers_that_ended_early_are_counted_and_count_for_what_they_are() -> None:
    found = round_of([trace(0.0, 1.0, 2.0), trace(0.0, 1.0, tokens=1)], 2)
    assert (found.stopped_early, found.tokens_per_s) == (1, 1.5)


def test_a_system_that_does_not_tell_times_has_none() -> None:
    silent = Trace(submitted=0.0, finished=2.0, pieces=(), tokens=4)
    figures = result("peft", POINT, [round_of([silent], 4)])
    assert figures.keys() >= COLUMNS
    assert figures["tokens_per_s"] == 2.0
    assert [figures[name] for name in ("ttft_p50", "ttft_p95", "itl_p50", "itl_p95")] == [None] * 4


def test_a_row_is_the_median_of_its_rounds() -> None:
    rounds = [Round(tokens_per_s=speed, ttft=(speed,), itl=(), stopped_early=1) for speed in (3.0, 1.0, 20.0)]
    figures = result("kmserve", POINT, rounds)
    assert (figures["tokens_per_s"], figures["ttft_p50"], figures["rounds"], figures["stopped_early"]) == (3.0, 3.0, 3, 3)


def test_a_round_of_nothing_is_none() -> None:
    with pytest.raises(ValueError, match="without requests"):
        round_of([], 4)


def test_points_have_one_module_or_as_many_as_requests() -> None:
    found = {(cell.scenario, cell.concurrency, cell.adapters) for cell in cells((1, 4))}
    assert found == {(BASE, 1, 0), (BASE, 4, 0), *((name, *each) for name in (KM, KM_KE) for each in ((1, 1), (4, 1), (4, 4)))}


def test_points_with_one_module_for_all_only_where_wanted() -> None:
    found = [(cell.concurrency, cell.adapters) for cell in cells((1, 4, 16), shared_at=(16,)) if cell.scenario == KM]
    assert sorted(found) == [(1, 1), (4, 4), (16, 1), (16, 16)]


def test_points_of_given_numbers_of_modules_need_as_many_requests() -> None:
    found = [(cell.concurrency, cell.adapters) for cell in cells((1, 16, 256), (1, 16, 64)) if cell.scenario == KM]
    assert sorted(found) == [(1, 1), (16, 1), (16, 16), (256, 1), (256, 16), (256, 64)]


def test_the_most_telling_points_come_first_and_one_module_for_all_comes_last() -> None:
    found = [(cell.scenario, cell.concurrency, cell.adapters) for cell in cells((1, 4, 16))]
    assert found[:5] == [(BASE, 16, 0), (KM_KE, 16, 16), (BASE, 1, 0), (KM_KE, 1, 1), (BASE, 4, 0)]
    assert found[-4:] == [(KM_KE, 16, 1), (KM_KE, 4, 1), (KM, 16, 1), (KM, 4, 1)]


def test_rows_are_told_in_the_readers_order() -> None:
    rows = [row("b", KM, 1.0), row("a", BASE, 1.0), row("a", BASE, 1.0, concurrency=1)]
    assert [(each["scenario"], each["concurrency"]) for each in in_order(rows)] == [(BASE, 1), (BASE, 4), (KM, 4)]


def test_ratios_are_to_the_own_base_and_to_others_at_the_same_point() -> None:
    rows = [row("kmserve", BASE, 100.0), row("kmserve", KM, 80.0), row("peft", KM, 40.0), row("transformers", BASE, 50.0)]
    found = {(each["system"], each["scenario"], each["to"]): each["ratio"] for each in ratios(rows)}
    assert found == {
        ("kmserve", BASE, "transformers"): 2.0,
        ("kmserve", KM, "kmserve base"): 0.8,
        ("kmserve", KM, "peft"): 2.0,
        ("peft", KM, "transformers base"): 0.8,
    }


def test_zipf_draws_by_rank() -> None:
    drawn = Counter(zipf(1000, 20_000))
    assert drawn[0] / drawn[1] == pytest.approx(2.0, rel=0.15)
    assert drawn[0] / drawn[9] == pytest.approx(10.0, rel=0.25)
    assert zipf(10, 5) == zipf(10, 5)
    assert set(zipf(3, 100)) <= {0, 1, 2}


def test_questions_differ_from_their_first_words_and_are_as_long_as_wanted() -> None:
    asked = list(islice(questions(lambda text: len(text.split()), tokens=60), 600))
    assert len({" ".join(text.split()[:2]) for text in asked}) == len(asked)
    assert {len(text.split()) for text in asked} <= {59, 60}
