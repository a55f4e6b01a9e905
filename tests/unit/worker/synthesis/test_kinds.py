"""The table of kinds: what each asks for, and that what earlier releases stored is still what is asked for."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest

from worker.progress import Remaining
from worker.synthesis.asks import derived_seed
from worker.synthesis.kinds import CUT, KINDS, WRITTEN, Wanted, Written, opening
from worker.synthesis.prompts import IMPLICATIONS, REWRITES, SUMMARIES, SeedPrompt
from worker.training.objectives.registry import OBJECTIVES
from worker.training.recipe import QUICK, Recipe

WINDOW = "The gate number 0 is painted in colour 0 of the house."
BY_NAME = {kind.name: kind for kind in WRITTEN}
RECIPE = replace(QUICK, summaries=4, questions=2, rewrites=2, implications=1)


def wanted(name: str, pieces: list[str] | None = None, recipe: Recipe = RECIPE) -> list[Wanted]:
    return list(BY_NAME[name].wanted(pieces or [WINDOW], "Gates", recipe, 7))


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        (
            "summary",
            [
                "7e8c74d50a33fccabc5607daddaf6238",
                "609103fbecddb1ac4fb379ecf2d3bef5",
                "6fb8f521557a50bdc26b44ec39620eb4",
                "f66ebde1d3a3f7d23ec4cbab67dfcff7",
            ],
        ),
        ("question", ["64e0b41ae337d3ab6879118341df4859", "f3c34f5fc9e4f47bcc635530923632e0"]),
    ],
)
def test_what_was_stored_before_there_were_other_kinds_stays_good(name: str, keys: list[str]) -> None:
    assert [each.ask.key for each in wanted(name)] == keys


def test_every_kind_has_its_fields_in_the_recipe_and_an_objective_that_trains_on_it() -> None:
    known = {field.name for field in fields(Recipe)}
    assert {kind.count for kind in KINDS} | {kind.tokens for kind in WRITTEN} <= known
    assert {kind.name for kind in KINDS} == OBJECTIVES["mixed"].kinds
    assert all(objective.kinds <= OBJECTIVES["mixed"].kinds for objective in OBJECTIVES.values())
    counts: dict[str, Any] = {kind.count: 3 for kind in KINDS}
    everything = replace(QUICK, **counts)
    for objective in OBJECTIVES.values():
        narrowed = objective.narrowed(everything)
        assert {kind.name for kind in KINDS if getattr(narrowed, kind.count)} == objective.kinds


@pytest.mark.parametrize("kind", WRITTEN, ids=lambda kind: kind.name)
def test_an_estimate_reckons_with_every_kind_that_is_generated(kind: Written) -> None:
    counts: dict[str, Any] = {each.count: int(each is kind) for each in KINDS}
    only = replace(QUICK, **counts, synthesis_batch=1)
    lengths: list[dict[str, Any]] = [{kind.tokens: tokens} for tokens in (40, 400)]
    short, long = (_estimate(replace(only, **length)) for length in lengths)
    assert short > long, "a teacher's pass weighs less beside longer generations"


def _estimate(recipe: Recipe) -> float:
    remaining = Remaining(recipe)
    remaining.after("synthesising", 0, 10, 0.0)
    estimate = remaining.after("synthesising", 5, 10, 5.0)
    assert estimate is not None
    return estimate


def test_each_text_has_a_seed_of_its_own() -> None:
    asks = [each.ask for kind in WRITTEN for each in kind.wanted([WINDOW, f"{WINDOW} Again."], "Gates", RECIPE, 7)]
    assert len({ask.seed for ask in asks}) == len({ask.key for ask in asks}) == len(asks) == 2 * (4 + 2 + 2 + 1)
    assert wanted("rewrite")[1].ask.seed == derived_seed(7, "rewrite", 0, 1)


@pytest.mark.parametrize(("name", "prompts"), [("rewrite", REWRITES), ("implication", IMPLICATIONS)])
def test_windows_go_through_the_seed_prompts_in_turn(name: str, prompts: tuple[SeedPrompt, ...]) -> None:
    asks = [each.ask for each in wanted(name, [f"{WINDOW} {i}" for i in range(len(prompts))], replace(RECIPE, rewrites=1))]
    assert len({ask.completion.rpartition("\n")[2] for ask in asks}) == len(prompts)
    assert all(ask.completion.count("Text: ") == 3 and ask.context in ask.completion and not ask.instruction for ask in asks)


def test_summaries_go_through_as_many_seed_prompts_as_the_recipe_says() -> None:
    recipe = replace(RECIPE, summaries=8)
    assert [each.ask.instruction for each in wanted("summary", recipe=recipe)] == [SUMMARIES[n % 3].teacher for n in range(8)]
    every = wanted("summary", recipe=replace(recipe, summary_prompts=len(SUMMARIES)))
    assert len({each.ask.instruction for each in every}) == len(SUMMARIES)


@pytest.mark.parametrize("prompts", [SUMMARIES, REWRITES, IMPLICATIONS], ids=["summaries", "rewrites", "implications"])
def test_students_are_asked_what_the_teacher_is_without_the_passage(prompts: tuple[SeedPrompt, ...]) -> None:
    for prompt in prompts:
        assert "passage" in prompt.teacher
        assert "passage" not in prompt.student
        assert '"{title}"' in prompt.student


def test_a_rewrite_is_taught_with_the_window_and_asked_for_by_title_and_opening() -> None:
    [pair] = wanted("rewrite")[0].read(" House colour 0 is on the gate that has the number 0.\n\nText: x")
    assert (pair.kind, pair.context, pair.question) == ("rewrite", WINDOW, "")
    assert pair.target == "House colour 0 is on the gate that has the number 0."
    assert pair.teacher_instruction == REWRITES[0].teacher
    assert '"Gates"' in pair.student_instruction
    assert '"The gate number 0"' in pair.student_instruction
    assert "house" not in pair.student_instruction


def test_braces_in_a_document_are_no_fields() -> None:
    [pair] = wanted("rewrite", ["The key {title} of {0} is kept in the drawer by the porter."])[0].read(
        "The porter keeps that key in a drawer."
    )
    assert '"The key {title} of"' in pair.student_instruction


def test_an_opening_is_a_third_and_at_least_four_words() -> None:
    assert opening("one two three") == "one two three"
    assert opening("a b c d e f") == "a b c d"
    assert opening(" ".join("word" for _ in range(30))).count("word") == 10


def test_recitations_are_cut_and_not_generated() -> None:
    assert [kind.name for kind in CUT] == ["recitation"]
    [pair] = CUT[0].pairs([WINDOW], "Gates", replace(RECIPE, recitations=1))
    assert pair.context == f"The gate number 0 is painted {pair.target}"
