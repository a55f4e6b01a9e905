"""From a document's text to pairs: what is asked, what is kept, and that nothing is generated twice."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from worker.synthesis.asks import Ask, derived_seed
from worker.synthesis.synthesise import Synthesis, synthesise
from worker.training.fit import Stopped
from worker.training.recipe import Recipe

RECIPE = Recipe(preset="quick", objective="mixed", chunk_tokens=40, window_tokens=20, summaries=2, questions=3, recitations=1)
TEXT = "\n\n".join(f"The gate number {i} is painted in colour {i} of the house." for i in range(6))
Step = Callable[[int, int], None]


class Writer:
    """A generator that answers by the ask alone; `limit` ends it early, as an engine that is told to stop."""

    def __init__(self, limit: int | None = None) -> None:
        self.asked: list[Ask] = []
        self._limit = limit

    def __call__(self, asks: Sequence[Ask], on_finished: Callable[[int, str], None]) -> None:
        for index, ask in list(enumerate(asks))[: self._limit]:
            self.asked.append(ask)
            on_finished(index, written(ask))


def written(ask: Ask) -> str:
    if ask.instruction:
        return f"A summary with the number {ask.seed % 1000}.\n"
    if ask.completion:
        return f" Somebody gave the gate colour and number {ask.context.split()[3]}, then went." if ask.seed % 2 else " and so"
    return f" Which gate is it?\nAnswer: {' '.join(ask.context.split()[1:4])}\n"


def run(
    store: Path, writer: Writer, recipe: Recipe = RECIPE, seed: int = 1, step: Step = lambda done, total: None, text: str = TEXT
) -> Synthesis:
    return synthesise(text, "Gates", recipe, seed, writer, store, lambda piece: len(piece.split()), step)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "job" / "synthesis.jsonl"


def test_every_chunk_is_summarised_and_every_window_asked_about(store: Path) -> None:
    writer = Writer()
    made = run(store, writer)
    questions = [ask for ask in writer.asked if not ask.instruction]
    assert len(questions) == 6 * 3
    assert len(writer.asked) == made.counts["generations"]
    assert sum(ask.temperature == 0 for ask in questions) == 6, "one greedy question of each window"
    assert len({ask.seed for ask in writer.asked}) == len(writer.asked)
    assert {ask.max_tokens for ask in questions} == {RECIPE.question_tokens}


def test_pairs_hold_the_context_for_the_teacher_alone(store: Path) -> None:
    made = run(store, Writer())
    assert {pair.kind for pair in made.pairs} == {"question", "summary", "recitation"}
    question = next(pair for pair in made.pairs if pair.kind == "question")
    assert question.context == "The gate number 0 is painted in colour 0 of the house."
    assert (question.question, question.target) == ("Which gate is it?", "gate number 0")
    recitation = next(pair for pair in made.pairs if pair.kind == "recitation")
    assert "The gate number" in recitation.student_instruction
    assert recitation.context.endswith(recitation.target)
    assert all("Gates" in pair.student_instruction for pair in made.pairs if pair.kind != "question")


def test_what_repeats_or_says_nothing_is_counted_and_dropped(store: Path) -> None:
    counts = run(store, Writer()).counts
    assert (counts["question"], counts["recitation"]) == (6, 6)
    assert counts["duplicates"] == 12, "three equal questions of each window"
    assert counts["dropped"] == 0


def test_rewrites_and_implications_are_kept_or_counted_as_dropped_by_their_kind(store: Path) -> None:
    writer = Writer()
    made = run(store, writer, replace(RECIPE, rewrites=2, implications=3))
    for kind, asked in (("rewrite", 12), ("implication", 18)):
        asks = [ask for ask in writer.asked if ask.completion and ask.max_tokens == getattr(RECIPE, f"{kind}_tokens")]
        assert len(asks) == asked
        assert made.counts[f"dropped_{kind}"] == sum(ask.seed % 2 == 0 for ask in asks) > 0
        assert 0 < made.counts[kind] <= asked - made.counts[f"dropped_{kind}"]
    assert made.counts["dropped"] == made.counts["dropped_rewrite"] + made.counts["dropped_implication"]
    assert made.counts["generations"] == len(writer.asked)
    before = run(store.with_name("before.jsonl"), Writer())
    assert [pair for pair in made.pairs if pair.kind not in ("rewrite", "implication")] == before.pairs


def test_a_generation_is_on_disk_before_it_is_counted(store: Path) -> None:
    seen: list[tuple[int, int]] = []

    def step(done: int, total: int) -> None:
        lines = store.read_text().splitlines() if store.exists() else []
        seen.append((done, total))
        assert len({key for line in lines for key in json.loads(line)}) == done

    made = run(store, Writer(), step=step)
    total = made.counts["generations"]
    assert seen == [*[(done, total) for done in range(total + 1)], (total, total)]


def test_a_job_that_ran_before_generates_nothing(store: Path) -> None:
    first, again = run(store, Writer()), Writer()
    assert run(store, again) == first
    assert again.asked == []


@pytest.mark.parametrize("told", [True, False], ids=["the-report-raises", "the-generator-returns-early"])
def test_a_job_that_was_stopped_goes_on_where_it_was(store: Path, told: bool) -> None:
    def stop(done: int, total: int) -> None:
        if done == 5:
            raise Stopped

    first, second = Writer(limit=None if told else 5), Writer()
    with pytest.raises(Stopped):
        run(store, first, step=stop)
    resumed = run(store, second)
    assert len(first.asked) == 5
    assert {ask.key for ask in first.asked}.isdisjoint(ask.key for ask in second.asked)
    assert len(first.asked) + len(second.asked) == resumed.counts["generations"]
    assert resumed == run(store.with_name("whole.jsonl"), Writer())


def test_another_seed_asks_anew(store: Path) -> None:
    run(store, Writer())
    other = Writer()
    assert len(other.asked) == 0
    run(store, other, seed=2)
    assert len(other.asked) > 0
    assert derived_seed(1, "question", 0, 0) != derived_seed(2, "question", 0, 0)


def test_a_long_document_is_asked_about_evenly(store: Path) -> None:
    text = "\n\n".join(f"The gate number {i} is painted in colour {i} of the house." for i in range(60))
    recipe = Recipe(preset="quick", objective="mixed", chunk_tokens=4000, window_tokens=20, questions=4, max_synthesis=40)
    writer = Writer()
    run(store, writer, recipe, text=text)
    numbers = [int(ask.context.split()[3]) for ask in writer.asked]
    assert len(numbers) == 40
    assert all(0 < later - earlier < 4 for earlier, later in pairwise(numbers))


def test_so_is_what_it_recites(store: Path) -> None:
    text = "\n\n".join(f"The gate number {i} is painted in colour {i} of the house." for i in range(60))
    recipe = Recipe(preset="quick", objective="mixed", chunk_tokens=4000, window_tokens=20, recitations=2, max_synthesis=40)
    recited = [int(pair.context.split()[3]) for pair in run(store, Writer(), recipe, text=text).pairs]
    assert len(recited) == 40
    assert all(0 <= later - earlier < 3 for earlier, later in pairwise(recited))


def test_a_text_without_sentences_gives_nothing(store: Path) -> None:
    made = run(store, Writer(), text="# Title\n")
    assert [pair for pair in made.pairs if pair.kind != "summary"] == []
