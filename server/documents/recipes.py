"""What a caller may say of a training: its preset, and what differs of its recipe, within bounds.

The trainer's own recipe is worker/training/recipe.py, which the server never imports: a test holds the two together. What is left out
there is for whoever runs the machine to say.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from server.documents.schemas import Preset
from server.schemas import Body

Number = Annotated[int, Field(strict=True, ge=0, le=64)]
Tokens = Annotated[int, Field(strict=True, ge=8, le=2_048)]
Share = Annotated[float, Field(strict=True, ge=0, le=1, allow_inf_nan=False)]
Positive = Annotated[float, Field(strict=True, gt=0, le=100, allow_inf_nan=False)]
Steps = Annotated[int, Field(strict=True, ge=1, le=100_000)]


class RecipeChanges(Body):
    """Fields of the preset's recipe to change for one training; docs/training.md says what each is. A type that is nearly right, as
    the text "8" for a number, is refused."""

    model_config = ConfigDict(json_schema_extra={"example": {"max_steps": 100, "rewrites": 2}})

    objective: Literal["lm", "pit", "ddcd", "sdcd", "mixed"] | None = None
    scope: Literal["all", "answer"] | None = None
    adapted: Literal["all", "attention", "mlp", "upper"] | None = None

    rank: Annotated[int, Field(strict=True, ge=1, le=256)] | None = None
    alpha: Positive | None = None
    dropout: Annotated[float, Field(strict=True, ge=0, lt=1, allow_inf_nan=False)] | None = None
    learning_rate: Annotated[float, Field(strict=True, gt=0, le=1, allow_inf_nan=False)] | None = None
    b_rate: Annotated[float, Field(strict=True, ge=0.01, le=100, allow_inf_nan=False)] | None = None
    warmup: Share | None = None
    decay: Literal["cosine", "linear"] | None = None
    clip: Positive | None = None
    max_steps: Steps | None = None
    batch_size: Annotated[int, Field(strict=True, ge=1, le=256)] | None = None
    micro_batch: Annotated[int, Field(strict=True, ge=1, le=256)] | None = None
    evaluate_every: Steps | None = None
    patience: Steps | None = None
    hidden_weight: Annotated[float, Field(strict=True, ge=0, le=100, allow_inf_nan=False)] | None = None
    hidden_term: Literal["mean", "sum", "mean_with_embeddings"] | None = None
    positions: Literal["shifted", "unshifted"] | None = None
    held_out: Annotated[float, Field(strict=True, ge=0.01, le=0.5, allow_inf_nan=False)] | None = None
    gate_improvement: Share | None = None

    chunk_tokens: Annotated[int, Field(strict=True, ge=64, le=8_192)] | None = None
    chunk_overlap: Annotated[float, Field(strict=True, ge=0, le=0.5, allow_inf_nan=False)] | None = None
    window_tokens: Annotated[int, Field(strict=True, ge=16, le=512)] | None = None
    summaries: Number | None = None
    summary_tokens: Tokens | None = None
    summary_prompts: Annotated[int, Field(strict=True, ge=1, le=7)] | None = None
    questions: Number | None = None
    question_tokens: Tokens | None = None
    rewrites: Number | None = None
    rewrite_tokens: Tokens | None = None
    implications: Number | None = None
    implication_tokens: Tokens | None = None
    recitations: Number | None = None
    with_passages: Share | None = None
    guard: Annotated[float, Field(strict=True, ge=0, le=0.5, allow_inf_nan=False)] | None = None
    ddcd_windows: Annotated[int, Field(strict=True, ge=1, le=1_000)] | None = None
    ddcd_target: Annotated[float, Field(strict=True, gt=0, lt=1, allow_inf_nan=False)] | None = None
    temperature: Annotated[float, Field(strict=True, ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(strict=True, gt=0, le=1, allow_inf_nan=False)] | None = None
    max_synthesis: Annotated[int, Field(strict=True, ge=1, le=100_000)] | None = None

    def changed(self) -> dict[str, Any]:
        """The fields that were given; null leaves one as the preset has it."""
        return self.model_dump(exclude_none=True)


class TrainModule(Body):
    """One training. Without `preset` it is the document's, which stays as it is in any case; `recipe` changes fields of its recipe; another
    `seed` gives other texts and another start."""

    model_config = ConfigDict(json_schema_extra={"example": {"preset": "standard", "recipe": {"max_steps": 100, "rewrites": 2}}})

    preset: Preset | None = None
    recipe: RecipeChanges | None = None
    seed: Annotated[int, Field(strict=True, ge=0, lt=2**31)] | None = None

    def params(self) -> dict[str, Any]:
        """Of the job: what the document itself does not say."""
        recipe = {} if self.recipe is None else self.recipe.changed()
        given = {"preset": self.preset, "recipe": recipe or None, "seed": self.seed}
        return {name: value for name, value in given.items() if value is not None}
