"""Recipes: every number of a training run in one frozen value, dumped into the manifest of what it made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from server.errors import InvalidInput


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """`paper` values are those of Caccia et al. (2025); lengths are in base tokens, `batch_size` in examples."""

    preset: str
    objective: str
    rank: int = 16
    alpha: float = 16.0
    dropout: float = 0.0
    learning_rate: float = 1e-3
    warmup: float = 0.06
    clip: float = 1.0
    max_steps: int = 200
    batch_size: int = 8
    micro_batch: int = 8
    hidden_weight: float = 1.0
    evaluate_every: int = 20
    patience: int = 3
    """Evaluations without a new best held-out loss before the fit stops."""
    held_out: float = 0.1
    """Share of the question-answer pairs (or, without any, of the summaries) kept out of training."""

    chunk_tokens: int | None = None
    """None: by the size of the base, see `for_base`."""
    chunk_overlap: float = 0.1
    window_tokens: int = 64
    """Document windows: sentences packed up to this length, the context of questions and recitations."""
    summaries: int = 0
    """Per chunk."""
    summary_tokens: int = 96
    questions: int = 0
    """Generations per window; one generation may hold several pairs."""
    question_tokens: int = 64
    recitations: int = 0
    """Per window: an opening of the window is given and the rest is the target."""
    temperature: float = 0.8
    top_p: float = 0.9
    synthesis_batch: int = 32
    max_synthesis: int = 4000
    """Generations at most per document, spread over it evenly, so that a long document stays affordable."""
    gate_improvement: float = 0.2
    """The held-out loss must fall by this share of the untrained student's."""


QUICK = Recipe(
    preset="quick",
    objective="mixed",
    max_steps=64,
    learning_rate=3e-3,
    evaluate_every=16,
    summaries=2,
    questions=4,
    question_tokens=40,
    recitations=2,
    max_synthesis=320,
)
PAPER = Recipe(
    preset="paper",
    objective="sdcd",
    dropout=0.05,
    max_steps=1500,
    evaluate_every=50,
    patience=10,
    summaries=16,
    summary_tokens=768,
    temperature=1.0,
    top_p=0.8,
)
SMALL_BASE = 1_000_000_000
"""Parameters. A smaller base loses its way in long contexts, and its synthesis with it."""
PRESETS = {recipe.preset: recipe for recipe in (QUICK, PAPER)}


def recipe_for(preset: str, overrides: Mapping[str, Any]) -> Recipe:
    """A preset with named fields changed. Raises InvalidInput for an unknown preset or field."""
    if preset not in PRESETS:
        raise InvalidInput(f"unknown preset {preset!r}: use one of {', '.join(sorted(PRESETS))}")
    fixed = {"preset", "objective"}
    unknown = set(overrides) - ({field.name for field in fields(Recipe)} - fixed)
    if unknown:
        raise InvalidInput(f"not fields of a recipe that can be set: {', '.join(sorted(unknown))}")
    return replace(PRESETS[preset], **overrides)


def for_base(recipe: Recipe, parameters: int) -> Recipe:
    """The recipe with what it leaves to the size of the base, a count of parameters."""
    if recipe.chunk_tokens is not None:
        return recipe
    return replace(recipe, chunk_tokens=512 if parameters < SMALL_BASE else 2048)


def as_json(recipe: Recipe) -> dict[str, Any]:
    return asdict(recipe)
