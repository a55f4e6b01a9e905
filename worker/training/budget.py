"""What of the teacher's states fits the bytes that they may take on the disk: all of them, else those of fewer layers, else of fewer
examples. A pure function of examples, recipe and base, so that every attempt of a job stores the same."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

from server.engine.base_model import BaseModel
from server.errors import InvalidInput
from worker.training.examples import Example
from worker.training.objectives.objective import Data
from worker.training.recipe import Recipe
from worker.training.states import head_of
from worker.training.teacher import LAYER_DTYPE, example_key

logger = logging.getLogger(__name__)
STRIDES = (1, 2, 3, 4)
"""Every so-manieth layer is kept, the last one always."""
FILE_BYTES = 512
"""Of a file beside its tensors."""
_SHRINK = 0.97


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Of a teacher's states: how many a token has, and the bytes of one in the layers and at the end."""

    states: int
    layer_bytes: int
    final_bytes: int

    def of(self, examples: Sequence[Example], kept: int) -> int:
        """Bytes of the different ones among them."""
        per_token = kept * self.layer_bytes + self.final_bytes
        unique = {example_key(example): len(example.target) for example in examples}
        return sum(FILE_BYTES + tokens * per_token for tokens in unique.values())


def sizes_of(base: BaseModel, recipe: Recipe) -> Sizes:
    hidden = head_of(base.model).in_features
    return Sizes(
        states=base.model.config.num_hidden_layers + recipe.reading.embeddings,
        layer_bytes=hidden * LAYER_DTYPE.itemsize,
        final_bytes=hidden * base.dtype.itemsize,
    )


def kept_states(states: int, every: int) -> tuple[int, ...]:
    """Every n-th, counted from the last."""
    return tuple(range((states - 1) % every, states, every))


def within_budget(data: Data, sizes: Sizes, budget: int, least: int) -> tuple[Data, tuple[int, ...]]:
    """The examples and the states whose teacher is stored, said in the data's counts.

    Raises InvalidInput if not even `least` training examples fit.
    """
    examples = [*data.held_out, *data.training]
    wanted = sizes.of(examples, sizes.states)
    for every in STRIDES:
        kept = kept_states(sizes.states, every)
        if (needed := sizes.of(examples, len(kept))) <= budget:
            break
    fitting = data if needed <= budget else _thinned(data, sizes, len(kept), budget, least)
    left_out = len(examples) - len(fitting.held_out) - len(fitting.training)
    if wanted > budget:
        logger.warning(
            "the teacher's states would take %.2f GB of the %.2f allowed: kept are %d of %d states a token, and %d of %d examples",
            *(wanted / 1e9, budget / 1e9, len(kept), sizes.states, len(examples) - left_out, len(examples)),
        )
    return replace(fitting, counts={**data.counts, "teacher_states": len(kept), "left_out": left_out}), kept


def _thinned(data: Data, sizes: Sizes, kept: int, budget: int, least: int) -> Data:
    """Examples spread evenly, training and held out by the same share."""
    share = budget / sizes.of([*data.held_out, *data.training], kept)
    while True:
        training = _spread(data.training, int(share * len(data.training)))
        held_out = _spread(data.held_out, max(1, int(share * len(data.held_out))))
        if len(training) < least:
            raise InvalidInput(f"teacher_cache_bytes of {budget} holds too few examples to train on: let it be larger")
        if sizes.of([*held_out, *training], kept) <= budget:
            return replace(data, training=training, held_out=held_out)
        share *= _SHRINK


def _spread(examples: Sequence[Example], count: int) -> list[Example]:
    return [examples[number * len(examples) // count] for number in range(count)]
