"""Recipes: every number of a training run in one frozen value, dumped into the manifest of what it made."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Final, Literal, get_args

from server.errors import InvalidInput

ObjectiveName = Literal["lm", "pit", "ddcd", "sdcd", "mixed"]
"""See worker/training/objectives."""
HiddenTerm = Literal["mean", "sum", "mean_with_embeddings"]
"""Over the layers: our reading of eq. 2, that of the paper's text, and that of its authors' code, which counts the embeddings as one."""
Positions = Literal["shifted", "unshifted"]
"""Where the two sides are compared: at the tokens that predict the target's, or (the authors' code) at the target's own, where the first
target token is not distilled and what would follow the last one is."""
ScopeName = Literal["all", "answer"]
"""Where adapters act: on every token, or from the question's instruction on, so that what stands before it is read by the bare base."""
Adapted = Literal["all", "attention", "mlp", "upper"]
"""The linear layers that a module changes: all but the head, those of either kind, or those of the upper half of the blocks."""
Decay = Literal["cosine", "linear"]
"""Of the learning rate after its warm-up: the paper's text, its authors' code."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Which states of a run are compared; `embeddings` come before those of the layers."""

    positions: Positions = "shifted"
    embeddings: bool = False


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A LoRA and how it is fitted, of modules and of extractors; `batch_size` is in examples."""

    rank: int = 16
    alpha: float = 16.0
    scope: ScopeName = "all"
    dropout: float = 0.0
    learning_rate: float = 1e-3
    b_rate: float = 1.0
    """Of B, as a multiple of A's: B begins at zero and has the longer way (LoRA+, Hayou et al. 2024)."""
    warmup: float = 0.06
    decay: Decay = "cosine"
    clip: float = 1.0
    max_steps: int = 200
    batch_size: int = 8
    micro_batch: int = 8
    """Examples that pass together; of long ones fewer, see worker.training.fit.micro_batches."""
    evaluate_every: int = 20
    patience: int = 3
    """Evaluations without a new best held-out loss before the fit stops."""


@dataclass(frozen=True, kw_only=True)
class Recipe(Schedule):
    """`paper` values are those of Caccia et al. (2025); lengths are in base tokens."""

    preset: str
    objective: ObjectiveName
    adapted: Adapted = "all"
    hidden_weight: float = 1.0
    hidden_term: HiddenTerm = "mean"
    positions: Positions = "shifted"
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
    summary_prompts: int = 3
    """Seed prompts that they are asked for with, in turn, of those in worker.synthesis.prompts."""
    questions: int = 0
    """Generations per window; one generation may hold several pairs."""
    question_tokens: int = 64
    rewrites: int = 0
    """Per window: the same in other words."""
    rewrite_tokens: int = 96
    implications: int = 0
    """Per window: a sentence about what follows from it."""
    implication_tokens: int = 48
    recitations: int = 0
    """Per window: an opening of the window is given and the rest is the target."""
    with_passages: float = 0.0
    """Share of the question examples whose student reads one or two of the document's passages."""
    guard: float = 0.0
    """Share of what passes in a step, beside the batch of the document, that are general questions with the base's own answers; see
    worker.training.guard."""
    ddcd_windows: int = 16
    """Random windows for every window's length of the document."""
    ddcd_target: float = 0.5
    """Share of a window, its last part, that is the target: half in the paper, 0.23 in its authors' code."""
    temperature: float = 0.8
    top_p: float = 0.9
    synthesis_batch: int = 32
    max_synthesis: int = 4000
    """Generations at most per document, and recitations at most, spread over it evenly, so that a long document stays affordable."""
    teacher_cache_bytes: int = 8_000_000_000
    """The most that the teacher's states take on the disk, see worker.training.budget."""
    gate_improvement: float = 0.2
    """The held-out loss must fall by this share of the untrained student's."""

    @property
    def known_chunk_tokens(self) -> int:
        """Of a recipe that `for_base` has completed."""
        assert self.chunk_tokens is not None, "see for_base"
        return self.chunk_tokens

    @property
    def reading(self) -> Reading:
        return Reading(positions=self.positions, embeddings=self.hidden_term == "mean_with_embeddings")


QUICK = Recipe(
    preset="quick",
    objective="mixed",
    max_steps=64,
    batch_size=5,
    learning_rate=3e-3,
    b_rate=4.0,
    evaluate_every=16,
    summaries=2,
    questions=4,
    question_tokens=40,
    recitations=2,
    max_synthesis=320,
)
STANDARD = Recipe(
    preset="standard",
    objective="mixed",
    max_steps=100,
    learning_rate=2e-3,
    b_rate=4.0,
    evaluate_every=10,
    summaries=8,
    summary_prompts=7,
    questions=8,
    question_tokens=40,
    rewrites=1,
    implications=1,
    recitations=2,
    max_synthesis=1000,
)
"""About four times the work of `quick`: twice the generations, and two and a half times the examples, which are longer."""
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
PRESETS = {recipe.preset: recipe for recipe in (QUICK, STANDARD, PAPER)}
SUMMARIES_ALONE: Final = 8
"""Per chunk, of `sdcd` where nothing else is said: it learns from them alone, and a page is one or two chunks."""
_WEARING: Final[Mapping[str, Mapping[str, Any]]] = {"quick": {"learning_rate": 1.5e-3}, "standard": {"learning_rate": 1e-3}}
"""A student that wears an extractor begins near its teacher. At the rate of others one story of eleven was thrown far away from there; at
half of it none was, and the others are 0.06 nats a token worse alone (docs/experiments.md)."""
_LIMITS: Final[Mapping[str, tuple[str, Callable[[float], bool]]]] = {
    "held_out": ("from 0.01 to 0.5", lambda share: 0.01 <= share <= 0.5),
    "with_passages": ("from 0 to 1", lambda share: 0 <= share <= 1),
    "guard": ("from 0 to 0.5", lambda share: 0 <= share <= 0.5),
    "ddcd_target": ("between 0 and 1", lambda share: 0 < share < 1),
    "chunk_overlap": ("from 0 to 0.5", lambda share: 0 <= share <= 0.5),
    "dropout": ("from 0 to below 1", lambda share: 0 <= share < 1),
    "warmup": ("from 0 to 1", lambda share: 0 <= share <= 1),
    "top_p": ("above 0, up to 1", lambda share: 0 < share <= 1),
    "temperature": ("from 0 to 2", lambda temperature: 0 <= temperature <= 2),
}
"""What a number must be, in words and to ask; the API has the same bounds."""
_FROM_ONE: Final = frozenset(
    [
        "rank",
        "alpha",
        "learning_rate",
        "b_rate",
        "clip",
        "max_steps",
        "batch_size",
        "micro_batch",
        "evaluate_every",
        "patience",
        "chunk_tokens",
        "window_tokens",
        "summary_tokens",
        "summary_prompts",
        "question_tokens",
        "rewrite_tokens",
        "implication_tokens",
        "ddcd_windows",
        "synthesis_batch",
        "max_synthesis",
        "teacher_cache_bytes",
    ]
)
"""Numbers that are never 0."""
_SMALLEST: Final = {"gate_improvement": -math.inf}
"""Of a number that may be below 0: a training whose result is taken however it went."""
_CHOICES: Final = {
    "objective": ObjectiveName,
    "hidden_term": HiddenTerm,
    "positions": Positions,
    "decay": Decay,
    "scope": ScopeName,
    "adapted": Adapted,
}


def while_wearing(preset: str) -> dict[str, Any]:
    """Fields that a preset changes for a module that is distilled while wearing an extractor, before those that are asked for."""
    return dict(_WEARING.get(preset, {}))


def recipe_for(preset: str, overrides: Mapping[str, Any]) -> Recipe:
    """A preset with named fields changed. Raises InvalidInput for an unknown preset, field or word, and for a number out of its bounds."""
    if preset not in PRESETS:
        raise InvalidInput(f"unknown preset {preset!r}: use one of {', '.join(sorted(PRESETS))}")
    kinds = {field.name: str(field.type) for field in fields(Recipe) if field.name != "preset"}
    if unknown := set(overrides) - set(kinds):
        raise InvalidInput(f"not fields of a recipe that can be set: {', '.join(sorted(unknown))}")
    for name, value in overrides.items():
        _require_number(name, value, kinds[name])
    recipe = replace(PRESETS[preset], **overrides)
    if recipe.objective == "sdcd" and "summaries" not in overrides:
        recipe = replace(recipe, summaries=max(recipe.summaries, SUMMARIES_ALONE))
    for name, words in _CHOICES.items():
        if (chosen := getattr(recipe, name)) not in get_args(words):
            raise InvalidInput(f"unknown {name} {chosen!r} in the recipe: use one of {', '.join(get_args(words))}")
    for name, (bounds, fits) in _LIMITS.items():
        if not fits(getattr(recipe, name)):
            raise InvalidInput(f"{name} in the recipe is a number {bounds}, not {getattr(recipe, name)}")
    return recipe


def _require_number(name: str, value: Any, kind: str) -> None:
    """Of a field that is one, by its annotation: JSON has words, truths and NaN in its place, with which nothing is learned."""
    from_one = name in _FROM_ONE
    if kind == "float":
        allowed = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not allowed or value < _SMALLEST.get(name, 0) or (from_one and not value):
            raise InvalidInput(f"{name} in the recipe is a number {'above 0' if from_one else 'from 0 on'}, not {value!r}")
    whole = kind.startswith("int") and not (value is None and kind.endswith("None"))
    if whole and (not isinstance(value, int) or isinstance(value, bool) or value < from_one):
        raise InvalidInput(f"{name} in the recipe is a whole number from {int(from_one)} on, not {value!r}")


def for_base(recipe: Recipe, parameters: int) -> Recipe:
    """The recipe with what it leaves to the size of the base, a count of parameters."""
    if recipe.chunk_tokens is not None:
        return recipe
    return replace(recipe, chunk_tokens=512 if parameters < SMALL_BASE else 2048)


def as_json(recipe: Recipe) -> dict[str, Any]:
    return asdict(recipe)
