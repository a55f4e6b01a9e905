"""Next tokens from logits. A request draws from its own random stream, so its neighbours in a batch do not change its answer.

Knows nothing of requests beyond their sampling parameters.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from server.engine.request import Sampling, TokenLogprob

NUCLEUS_GUESS = 1024
"""Most nuclei are smaller than this; only larger ones pay for sorting the vocabulary."""


class Draw:
    """One request's choice of tokens: greedy, or by inverse transform of a uniform number from its seed."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._random = random.Random(sampling.seed)

    @property
    def greedy(self) -> bool:
        return self._sampling.temperature == 0

    def pick(self, logits_V: Tensor) -> int:
        """Sample a token id from finite logits."""
        top_k, top_p = self._sampling.top_k, self._sampling.top_p
        probabilities = torch.softmax(logits_V.double() / self._sampling.temperature, dim=-1)
        if 0 < top_k < len(probabilities):
            likeliest, ids = probabilities.topk(top_k)
            mass = likeliest.cumsum(0)
            kept = likeliest[mass - likeliest < top_p * mass[-1]]
            return int(ids[self._invert(kept)])
        if top_p >= 1:
            return self._invert(probabilities)
        nucleus, ids = _nucleus(probabilities, top_p)
        return int(ids[self._invert(nucleus)])

    def _invert(self, weights: Tensor) -> int:
        cumulative = weights.cumsum(0)
        point = cumulative[-1] * self._random.random()
        return min(int(torch.searchsorted(cumulative, point, right=True)), len(weights) - 1)


def sample(logits_NV: Tensor, draws: Sequence[Draw]) -> list[int | None]:
    """One token id per row; None where the logits are not finite and nothing can be drawn."""
    best, greedy = logits_NV.max(dim=-1)
    finite = torch.isfinite(best).tolist()
    return [
        None if not usable else token if draw.greedy else draw.pick(row)
        for row, draw, token, usable in zip(logits_NV, draws, greedy.tolist(), finite, strict=True)
    ]


def token_logprob(logits_V: Tensor, token: int, alternatives: int) -> TokenLogprob:
    """A token's log-probability under the model's own distribution, before temperature, and those of the likeliest tokens."""
    precise = logits_V if logits_V.dtype == torch.float64 else logits_V.float()
    logprobs = torch.log_softmax(precise, dim=-1)
    values, ids = logprobs.topk(min(alternatives, len(logprobs)))
    return TokenLogprob(token_id=token, logprob=float(logprobs[token]), top=tuple(zip(ids.tolist(), values.tolist(), strict=True)))


def _nucleus(probabilities: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """The smallest set of most probable tokens whose mass reaches `top_p`: probabilities and ids."""
    top, ids = probabilities.topk(min(NUCLEUS_GUESS, len(probabilities)))
    if float(top.sum()) < top_p:
        top, ids = probabilities.sort(descending=True)
    size = int((top.cumsum(0) - top < top_p).sum())
    return top[:size], ids[:size]
