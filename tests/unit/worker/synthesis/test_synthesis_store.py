"""What synthesis keeps on disk, torn by a kill."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread

from worker.synthesis.asks import Ask, generated
from worker.synthesis.synthesise import Synthesis, synthesise
from worker.training.recipe import QUICK, for_base

TEXT = "The gate opens at seven in the morning. The code word of the desk is heron. Visitors wait in the blue room."


class Generates:
    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, asks: Sequence[Ask], on_finished: Callable[[int, str], None]) -> None:
        self.asked += len(asks)
        for index, ask in enumerate(asks):
            on_finished(index, f"A summary of its own, number {ask.seed}.\u2028")


def run(store: Path, generate: Generates) -> Synthesis:
    recipe = replace(for_base(QUICK, 1), questions=0, summaries=4)
    return synthesise(TEXT, "Rules", recipe, 0, generate, store, lambda text: len(text.split()), lambda done, total: None)


def test_only_the_torn_line_is_generated_again(tmp_path: Path) -> None:
    store, generate = tmp_path / "synthesis.jsonl", Generates()
    whole = run(store, generate)
    assert (generate.asked, whole.counts["summary"]) == (4, 4)
    store.write_text(store.read_text()[:-20])
    again = run(store, generate)
    assert generate.asked == 5
    assert again.counts["summary"] == 4
    assert run(store, generate).pairs == again.pairs
    assert generate.asked == 5


def test_a_tear_right_behind_a_value_joins_no_two_lines(tmp_path: Path) -> None:
    store, generate = tmp_path / "synthesis.jsonl", Generates()
    run(store, generate)
    store.write_text(store.read_text().rstrip("\n"))
    store.write_text(store.read_text() + '{"0a')
    run(store, generate)
    assert generate.asked <= 5
    run(store, generate)
    assert generate.asked <= 5


def test_two_that_share_a_store_generate_each_text_once(tmp_path: Path) -> None:
    """One waits, and tells so, while the other writes."""
    store, first, second = tmp_path / "synthesis.jsonl", Generates(), Generates()
    writing, may_end, waited = Event(), Event(), list[tuple[int, int]]()

    def slow(asks: Sequence[Ask], on_finished: Callable[[int, str], None]) -> None:
        writing.set()
        assert may_end.wait(30)
        first(asks, on_finished)

    def told(done: int, total: int) -> None:
        waited.append((done, total))
        may_end.set()

    recipe = replace(for_base(QUICK, 1), questions=0, summaries=4)
    one = Thread(target=lambda: synthesise(TEXT, "Rules", recipe, 0, slow, store, lambda text: len(text.split()), lambda done, total: None))
    one.start()
    assert writing.wait(30)
    synthesise(TEXT, "Rules", recipe, 0, second, store, lambda text: len(text.split()), told)
    one.join()
    assert (first.asked, second.asked) == (4, 0)
    assert waited[0] == (0, 4)
    assert waited[-1] == (4, 4)


def test_of_two_texts_under_one_key_the_first_is_taken(tmp_path: Path) -> None:
    store = tmp_path / "synthesis.jsonl"
    store.write_text('{"key": "first"}\n{"key": "second"}\n')
    assert generated([], Generates(), store, lambda done, total: None) == {"key": "first"}
