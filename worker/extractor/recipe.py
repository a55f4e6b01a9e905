"""How an extractor is trained: every number in one frozen value, dumped into the manifest of what it made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Final, Literal, get_args

from server.errors import InvalidInput
from server.modules.manifest import Manifest
from server.modules.start import misfit, shape_of
from worker.training.recipe import Decay, Schedule, ScopeName

Learn = Literal["all", "weights"]
"""A lora and the weights over it, or, over a lora that modules wear already, the weights alone."""


@dataclass(frozen=True, kw_only=True)
class ExtractorRecipe(Schedule):
    """The shares are of examples; see worker.extractor.examples for what they mix."""

    learning_rate: float = 3e-4
    weights_rate: float = 1e-2
    """Learning rate of the composition's weights: at the lora's they would stay where they start."""
    max_steps: int = 240
    evaluate_every: int = 20
    patience: int = 4
    learn: Learn = "all"
    start_weight: float = 1.0
    """Where w_km and w_ke begin without a start; the authors' code has 0.5. A w_km that is not learned, for want of modules, stays 1."""
    without_module: float = 0.25
    with_passages: float = 0.5
    most_passages: int = 4
    """As many as a prompt has at most, from one on, drawn evenly."""
    unanswerable: float = 0.2
    held_out: float = 0.1
    """Share of the documents, at least one, whose questions decide on early stop and the gate."""
    most_held_out: int = 48
    """Of their questions, spread evenly."""
    gate_improvement: float = 0.02
    """The held-out loss must fall by this share of what it is with the modules alone, or with the extractor that training begins from."""


READER: Final = ExtractorRecipe(without_module=1.0, with_passages=0.7, unanswerable=0.0)
"""For an extractor that learns to read and to answer shortly before there are modules, to be trained on over them or worn in their
distillation. It declines nothing: a weak reader declines too much, and modules that wear it would learn that."""
MOST_EXAMPLES: Final = 200_000
"""Of a training: they are drawn before it begins."""
_SHARES = ("without_module", "with_passages", "unanswerable", "held_out", "warmup")
_MOST: Final = {
    "rank": 256,
    "max_steps": 100_000,
    "batch_size": 256,
    "micro_batch": 256,
    "evaluate_every": 100_000,
    "patience": 100_000,
    "most_passages": 20,
    "most_held_out": 1_000,
}


def extractor_recipe(overrides: Mapping[str, Any], *, modules: bool, start: Manifest | None = None) -> ExtractorRecipe:
    """The default for documents with or without modules, with named fields changed; rank, alpha and scope are those of `start`, where
    training begins from another extractor. Raises InvalidInput for an unknown field or value, and for one that the start does not have."""
    usual = ExtractorRecipe() if modules else READER
    known = {field.name for field in fields(ExtractorRecipe)}
    if unknown := sorted(set(overrides) - known):
        raise InvalidInput(f"not fields of an extractor's recipe: {', '.join(unknown)}; it has {', '.join(sorted(known))}")
    for name, value in overrides.items():
        _check_type(name, value, getattr(usual, name))
    if start is not None:
        if (why := misfit(shape_of(start), overrides)) is not None:
            raise InvalidInput(why)
        usual = replace(usual, **shape_of(start))
    recipe = replace(usual, **overrides)
    for name, words in (("learn", Learn), ("scope", ScopeName), ("decay", Decay)):
        if (chosen := getattr(recipe, name)) not in get_args(words):
            raise InvalidInput(f"unknown {name} {chosen!r} in the recipe: use one of {', '.join(get_args(words))}")
    for name in _SHARES:
        if not 0 <= getattr(recipe, name) <= 1:
            raise InvalidInput(f"{name} is a share: use a number from 0 to 1")
    for name, most in _MOST.items():
        if not 1 <= getattr(recipe, name) <= most:
            raise InvalidInput(f"{name} must be at least 1 and at most {most}")
    if recipe.max_steps * recipe.batch_size > MOST_EXAMPLES:
        raise InvalidInput(f"max_steps times batch_size is at most {MOST_EXAMPLES} examples")
    for name in ("alpha", "learning_rate", "b_rate", "weights_rate", "clip"):
        if not 0 < getattr(recipe, name) <= 1000:
            raise InvalidInput(f"{name} must be above 0 and at most 1000")
    if not 0 <= recipe.start_weight <= 1000:
        raise InvalidInput("start_weight must be at least 0 and at most 1000")
    if not 0 <= recipe.dropout < 1:
        raise InvalidInput("dropout must be at least 0 and below 1")
    return recipe


def _check_type(name: str, value: Any, usual: Any) -> None:
    numbers = (int, float) if isinstance(usual, float) else (int,)
    wanted = (str,) if isinstance(usual, str) else numbers
    if isinstance(value, bool) or not isinstance(value, wanted):
        raise InvalidInput(f"{name} in the recipe must be {'a word' if wanted == (str,) else 'a number'}, not {value!r}")
