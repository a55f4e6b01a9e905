"""What a caller may say of an extractor's training, within bounds.

The trainer's own recipe is worker/extractor/recipe.py, which the server never imports: a test holds the two together.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from server.documents.recipes import Positive, Share, Steps
from server.schemas import Body

MOST_EXAMPLES: Final = 200_000
_USUAL_STEPS, _USUAL_BATCH = 240, 8

Few = Annotated[int, Field(strict=True, ge=1, le=256)]
Rate = Annotated[float, Field(strict=True, gt=0, le=1, allow_inf_nan=False)]


class ExtractorRecipeChanges(Body):
    """Fields of the recipe to change for one training; docs/evaluation.md says what they mix."""

    model_config = ConfigDict(json_schema_extra={"example": {"max_steps": 100, "unanswerable": 0.1}})

    learn: Literal["all", "weights"] | None = None
    start_weight: Annotated[float, Field(strict=True, ge=0, le=100, allow_inf_nan=False)] | None = None
    scope: Literal["all", "answer"] | None = None
    rank: Few | None = None
    alpha: Positive | None = None
    dropout: Annotated[float, Field(strict=True, ge=0, lt=1, allow_inf_nan=False)] | None = None
    learning_rate: Rate | None = None
    weights_rate: Rate | None = None
    b_rate: Annotated[float, Field(strict=True, ge=0.01, le=100, allow_inf_nan=False)] | None = None
    warmup: Share | None = None
    decay: Literal["cosine", "linear"] | None = None
    clip: Positive | None = None
    max_steps: Steps | None = None
    batch_size: Few | None = None
    micro_batch: Few | None = None
    evaluate_every: Steps | None = None
    patience: Steps | None = None
    without_module: Share | None = None
    with_passages: Share | None = None
    most_passages: Annotated[int, Field(strict=True, ge=1, le=20)] | None = None
    unanswerable: Share | None = None
    held_out: Annotated[float, Field(strict=True, ge=0.01, le=0.5, allow_inf_nan=False)] | None = None
    most_held_out: Annotated[int, Field(strict=True, ge=1, le=1_000)] | None = None
    gate_improvement: Share | None = None

    @model_validator(mode="after")
    def _within_memory(self) -> Self:
        if (self.max_steps or _USUAL_STEPS) * (self.batch_size or _USUAL_BATCH) > MOST_EXAMPLES:
            raise ValueError(f"max_steps times batch_size is at most {MOST_EXAMPLES} examples")
        return self

    def changed(self) -> dict[str, Any]:
        """The fields that were given; null leaves one as it is by default."""
        return self.model_dump(exclude_none=True)
