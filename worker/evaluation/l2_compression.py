"""KV compression by the L2 norm of keys (Devoto et al., EMNLP 2024): a baseline that reads the whole document and keeps part of it.

Of each head of each layer the keys with the LOWEST L2 norm are kept, with their values: they are those that get most of the attention.
The first two layers, where that does not hold, are left whole. What is kept keeps its position, and what follows goes on at the position
where the whole prompt ended.

Written over transformers' DynamicCache. What is read afterwards is read token by token: heads keep different positions and layers
different numbers of them, which no attention mask over several tokens describes, while one token alone attends to all that is kept.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from server.engine.base_model import BaseModel
from server.engine.prompt import Prompt
from server.engine.request import EngineRequest

SKIPPED_LAYERS = 2


def compress(cache: DynamicCache, ratio: float, skipped: int = SKIPPED_LAYERS) -> None:
    """Drop the share `ratio` of the positions of each head, those with the highest key norms, in place; the rest stays in order."""
    for layer in cache.layers[skipped:]:
        keys, values = keys_and_values(layer)
        index = kept_positions(keys, ratio)[..., None]
        layer.keys = keys.gather(2, index.expand(-1, -1, -1, keys.shape[-1]))  # type: ignore[union-attr]
        layer.values = values.gather(2, index.expand(-1, -1, -1, values.shape[-1]))  # type: ignore[union-attr]


def keys_and_values(layer: Any) -> tuple[Tensor, Tensor]:
    """Of a layer that attends to all positions, each [B, H, T, D]. Raises ValueError for any other kind."""
    _require_full(layer)
    keys, values = layer.keys, layer.values
    assert keys is not None, "a prefix was read"
    assert values is not None, "a prefix was read"
    return keys, values


def _require_full(layer: Any) -> None:
    if type(layer) is not DynamicLayer:
        raise ValueError("row KV_L2 needs a base model whose layers attend to all positions; leave the row out")


def require_compressible(base: BaseModel) -> None:
    """Raises ValueError for a base with a layer that does not attend to all positions."""
    for layer in DynamicCache(config=base.model.config).layers:
        _require_full(layer)


def kept_positions(keys_BHTD: Tensor, ratio: float) -> Tensor:
    """[B, H, kept] positions with the lowest norms, ascending."""
    norms_BHT = keys_BHTD.float().norm(dim=-1)
    lowest_BHK: Tensor = norms_BHT.topk(kept(keys_BHTD.shape[2], ratio), dim=-1, largest=False).indices
    return lowest_BHK.sort(dim=-1).values


def kept(tokens: int, ratio: float) -> int:
    """How many of `tokens` positions are kept: at least one."""
    if not 0 <= ratio < 1:
        raise ValueError("the share of positions to drop must be at least 0 and below 1")
    return max(1, round(tokens * (1 - ratio)))


class CompressedReader:
    """Answers and scores over a compressed `prompt.bare`, which holds the document; `prompt.adapted`, the question, is read whole.

    Requests wear nothing. One prefix is remembered, so those about one document best follow each other.
    """

    def __init__(self, base: BaseModel, ratio: float, skipped: int = SKIPPED_LAYERS) -> None:
        self._base = base
        self._ratio = ratio
        self._skipped = skipped
        self._prefix: tuple[int, ...] = ()
        self._cache = DynamicCache()
        self.name = f"l2-{ratio:g}-skip{skipped}"

    def prompt_tokens(self, prompt: Prompt) -> int:
        """Those that are kept, in the layers that are compressed."""
        return kept(len(prompt.bare), self._ratio) + len(prompt.adapted)

    def session(self) -> AbstractContextManager[None]:
        return nullcontext()

    def generate(self, requests: Sequence[EngineRequest], on_finished: Callable[[int, str], None]) -> None:
        """Greedy answers."""
        for index, request in enumerate(requests):
            on_finished(index, str(self._base.tokenizer.decode(self._greedy(request), skip_special_tokens=True)))

    def score(
        self,
        asks: Sequence[tuple[EngineRequest, Sequence[tuple[int, ...]]]],
        on_finished: Callable[[int, list[tuple[float, ...]]], None],
    ) -> None:
        """Token log-probabilities of each continuation."""
        for index, (request, continuations) in enumerate(asks):
            _bare_and_greedy(request)
            reading, first = self._read(request.prompt)
            on_finished(index, [self._logprobs(copy.deepcopy(reading), first, ids) for ids in continuations])

    def _greedy(self, request: EngineRequest) -> list[int]:
        _bare_and_greedy(request)
        reading, logits = self._read(request.prompt)
        tokens: list[int] = []
        while len(tokens) < request.sampling.max_tokens:
            token = int(logits.argmax())
            if token in self._base.eos_ids:
                break
            tokens.append(token)
            logits = reading.step(token)
        return tokens

    def _logprobs(self, reading: Reading, logits: Tensor, ids: tuple[int, ...]) -> tuple[float, ...]:
        found: list[float] = []
        for number, token in enumerate(ids):
            found.append(float(logits.double().log_softmax(-1)[token]))
            if number + 1 < len(ids):
                logits = reading.step(token)
        return tuple(found)

    def _read(self, prompt: Prompt) -> tuple[Reading, Tensor]:
        """The prompt read over its compressed prefix, and the logits behind it."""
        if prompt.bare != self._prefix:
            self._cache = read_prefix(self._base, prompt.bare)
            compress(self._cache, self._ratio, self._skipped)
            self._prefix = prompt.bare
        reading = Reading(self._base, copy.deepcopy(self._cache), len(prompt.bare))
        logits = [reading.step(token) for token in prompt.adapted]
        return reading, logits[-1]


class Reading:
    """Reads on behind a cache, one token at a time; `position` is that of the next token in the uncompressed text."""

    def __init__(self, base: BaseModel, cache: DynamicCache, position: int) -> None:
        self._base = base
        self._cache = cache
        self.position = position

    def __deepcopy__(self, memo: dict[int, object]) -> Reading:
        return Reading(self._base, copy.deepcopy(self._cache, memo), self.position)

    @torch.no_grad()
    def step(self, token: int) -> Tensor:
        """The logits [V] behind `token`."""
        device = self._base.device
        ids, positions = torch.tensor([[token]], device=device), torch.tensor([[self.position]], device=device)
        output = self._base.model(input_ids=ids, position_ids=positions, past_key_values=self._cache, use_cache=True)
        self.position += 1
        logits: Tensor = output.logits[0, -1]
        return logits


@torch.no_grad()
def read_prefix(base: BaseModel, ids: tuple[int, ...]) -> DynamicCache:
    """The keys and values of a text from its start, each layer's of the kind that the base has."""
    cache = DynamicCache(config=base.model.config)
    base.model.base_model(input_ids=torch.tensor([ids], device=base.device), past_key_values=cache, use_cache=True)
    return cache


def _bare_and_greedy(request: EngineRequest) -> None:
    if request.module or request.extractor or request.sampling.temperature:
        raise ValueError("the compressed baseline answers greedily and wears no adapter")
