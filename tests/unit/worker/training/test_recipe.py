"""Recipes."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any, get_args

import pytest

from server.errors import InvalidInput
from worker.synthesis.kinds import KINDS, WRITTEN
from worker.synthesis.prompts import SUMMARIES
from worker.training.recipe import PRESETS, QUICK, ObjectiveName, Reading, Recipe, as_json, for_base, recipe_for, while_wearing


def test_presets_are_named_as_they_say() -> None:
    assert {name: recipe.preset for name, recipe in PRESETS.items()} == {name: name for name in ("quick", "standard", "paper")}


def test_the_standard_preset_is_two_to_four_quick_ones_of_every_kind_of_pair() -> None:
    quick, standard = recipe_for("quick", {}), recipe_for("standard", {})
    assert standard.objective == "mixed"
    assert all(getattr(standard, kind.count) > 0 for kind in KINDS)
    assert standard.summary_prompts == len(SUMMARIES)
    assert 2 <= (standard.max_steps * standard.batch_size) / (quick.max_steps * quick.batch_size) <= 4
    assert 3 <= standard.max_synthesis / quick.max_synthesis <= 4
    windows, chunks = 40, 2
    generations = [
        sum(getattr(recipe, kind.count) * (chunks if kind.per == "chunk" else windows) for kind in WRITTEN) for recipe in (quick, standard)
    ]
    assert 2 <= generations[1] / generations[0] <= 4


def test_a_student_that_wears_an_extractor_learns_at_half_the_rate() -> None:
    for name in ("quick", "standard"):
        assert recipe_for(name, while_wearing(name)).learning_rate == PRESETS[name].learning_rate / 2
    assert while_wearing("paper") == while_wearing("unknown") == {}


def test_a_chunk_may_be_left_to_the_base_and_a_gate_be_no_gate() -> None:
    assert recipe_for("quick", {"chunk_tokens": None}).chunk_tokens is None
    assert recipe_for("quick", {"gate_improvement": -1e6}).gate_improvement == -1e6


def test_the_paper_preset_has_the_papers_numbers() -> None:
    paper = recipe_for("paper", {})
    assert (paper.objective, paper.rank, paper.alpha, paper.dropout, paper.learning_rate) == ("sdcd", 16, 16.0, 0.05, 1e-3)
    paper = for_base(paper, 8_000_000_000)
    assert (paper.max_steps, paper.batch_size, paper.chunk_tokens, paper.summaries, paper.hidden_weight) == (1500, 8, 2048, 16, 1.0)


def test_named_fields_are_changed_and_the_preset_is_not() -> None:
    changed = recipe_for("quick", {"max_steps": 7})
    assert changed.max_steps == 7
    assert recipe_for("quick", {}).max_steps != 7
    assert as_json(changed) == {**as_json(PRESETS["quick"]), "max_steps": 7}


@pytest.mark.parametrize(
    ("preset", "overrides", "named"),
    [
        ("fast", {}, "'fast'"),
        ("quick", {"steps": 7}, "steps"),
        ("quick", {"preset": "paper"}, "preset"),
        ("paper", {"objective": "kd"}, "'kd' in the recipe: use one of lm, pit, ddcd, sdcd, mixed"),
        ("quick", {"objective": ["lm"]}, "objective"),
        ("quick", {"hidden_term": "max"}, "mean, sum, mean_with_embeddings"),
        ("quick", {"positions": "all"}, "shifted, unshifted"),
        ("quick", {"decay": "none"}, "cosine, linear"),
        ("quick", {"scope": "question"}, "all, answer"),
        ("quick", {"adapted": "lower"}, "all, attention, mlp, upper"),
        ("quick", {"teacher_cache_bytes": 0}, "teacher_cache_bytes in the recipe is a whole number from 1 on"),
        ("quick", {"teacher_cache_bytes": 1e9}, "teacher_cache_bytes in the recipe is a whole number from 1 on"),
        ("quick", {"ddcd_target": 1.0}, "between 0 and 1"),
        ("quick", {"ddcd_target": 0}, "between 0 and 1"),
        ("quick", {"with_passages": 1.5}, "with_passages in the recipe is a number from 0 to 1, not 1.5"),
        ("quick", {"with_passages": "half"}, "with_passages in the recipe is a number from 0 on, not 'half'"),
        ("quick", {"b_rate": math.nan}, "b_rate in the recipe is a number above 0, not nan"),
        ("quick", {"b_rate": 0}, "b_rate in the recipe is a number above 0"),
        ("quick", {"learning_rate": -1e-3}, "learning_rate in the recipe is a number above 0"),
        ("quick", {"clip": math.inf}, "clip in the recipe is a number above 0, not inf"),
        ("quick", {"guard": True}, "guard in the recipe is a number from 0 on, not True"),
        ("quick", {"max_steps": 0}, "max_steps in the recipe is a whole number from 1 on, not 0"),
        ("quick", {"max_steps": 10.0}, "max_steps in the recipe is a whole number from 1 on, not 10.0"),
        ("quick", {"questions": -1}, "questions in the recipe is a whole number from 0 on, not -1"),
        ("quick", {"chunk_tokens": "512"}, "chunk_tokens in the recipe is a whole number from 1 on, not '512'"),
        ("quick", {"guard": 0.6}, "guard in the recipe is a number from 0 to 0.5, not 0.6"),
        ("quick", {"held_out": 0}, "held_out in the recipe is a number from 0.01 to 0.5, not 0"),
        ("quick", {"held_out": 0.6}, "held_out in the recipe is a number from 0.01 to 0.5"),
        ("quick", {"dropout": 1}, "dropout in the recipe is a number from 0 to below 1"),
        ("quick", {"warmup": 3}, "warmup in the recipe is a number from 0 to 1"),
        ("quick", {"top_p": 0}, "top_p in the recipe is a number above 0, up to 1"),
        ("quick", {"temperature": 2.5}, "temperature in the recipe is a number from 0 to 2"),
        ("quick", {"chunk_overlap": 0.6}, "chunk_overlap in the recipe is a number from 0 to 0.5"),
        ("quick", {"summary_tokens": 0}, "summary_tokens in the recipe is a whole number from 1 on"),
    ],
)
def test_unknown_names_are_refused(preset: str, overrides: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidInput, match=named):
        recipe_for(preset, overrides)


@pytest.mark.parametrize("objective", get_args(ObjectiveName))
def test_a_preset_takes_any_objective(objective: ObjectiveName) -> None:
    summaries = 8 if objective == "sdcd" else QUICK.summaries
    assert recipe_for("quick", {"objective": objective}) == replace(QUICK, objective=objective, summaries=summaries)


def test_what_learns_from_summaries_alone_has_enough_of_them_unless_told() -> None:
    assert recipe_for("quick", {"objective": "sdcd", "summaries": 3}).summaries == 3
    assert recipe_for("paper", {}).summaries == 16


def test_the_presets_read_the_papers_equations_our_way() -> None:
    for recipe in PRESETS.values():
        assert (recipe.hidden_term, recipe.positions, recipe.decay, recipe.ddcd_target) == ("mean", "shifted", "cosine", 0.5)
        assert recipe.reading == Reading(positions="shifted", embeddings=False)
    assert replace(QUICK, hidden_term="mean_with_embeddings", positions="unshifted").reading == Reading(
        positions="unshifted", embeddings=True
    )
    assert not replace(QUICK, hidden_term="sum").reading.embeddings


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_a_recipe_survives_json(preset: str) -> None:
    assert Recipe(**json.loads(json.dumps(as_json(PRESETS[preset])))) == PRESETS[preset]


@pytest.mark.parametrize(("parameters", "tokens"), [(135_000_000, 512), (8_000_000_000, 2048)])
def test_chunks_are_shorter_for_a_small_base(parameters: int, tokens: int) -> None:
    assert for_base(recipe_for("paper", {}), parameters).chunk_tokens == tokens
    assert for_base(recipe_for("paper", {"chunk_tokens": 700}), parameters).chunk_tokens == 700
