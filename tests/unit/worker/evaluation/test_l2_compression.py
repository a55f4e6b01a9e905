from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import DynamicCache

from server.engine.base_model import BaseModel
from server.engine.generate import generate_batch
from server.engine.prompt import Prompt
from server.engine.request import ArtefactRef
from server.engine.score import score_batch
from tests.support.tiny_models import tiny_base, tiny_prompt, tiny_request
from worker.evaluation.l2_compression import (
    CompressedReader,
    Reading,
    compress,
    kept,
    kept_positions,
    keys_and_values,
    read_prefix,
    require_compressible,
)

PROMPT = tiny_prompt(1, bare=20, adapted=6)
CONTINUATIONS = [(65, 66, 67), (70,)]


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return tiny_base("llama", torch.float64)


def answer(reader: CompressedReader, prompt: Prompt = PROMPT) -> str:
    told: dict[int, str] = {}
    reader.generate([tiny_request("1", prompt)], told.__setitem__)
    return told[0]


def scores(reader: CompressedReader, prompt: Prompt = PROMPT) -> list[tuple[float, ...]]:
    told: dict[int, list[tuple[float, ...]]] = {}
    reader.score([(tiny_request("1", prompt), CONTINUATIONS)], told.__setitem__)
    return told[0]


def test_the_keys_with_the_lowest_norms_are_kept_in_order() -> None:
    norms = torch.tensor([[[3.0, 1.0, 2.0, 5.0, 0.5, 4.0], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]]])
    keys = norms[..., None] * torch.tensor([0.6, 0.8])
    assert kept_positions(keys, 0.5).tolist() == [[[1, 2, 4], [0, 1, 2]]]


def test_how_many_are_kept() -> None:
    assert [kept(10, ratio) for ratio in (0.0, 0.25, 0.5, 0.99)] == [10, 8, 5, 1]
    with pytest.raises(ValueError, match="below 1"):
        kept(10, 1.0)


def test_keys_and_values_go_together_and_the_first_layers_stay_whole() -> None:
    cache = DynamicCache()
    for number in range(4):
        keys = torch.rand(1, 2, 8, 3, generator=torch.Generator().manual_seed(number))
        cache.update(keys, keys + 10, number)
    whole = [keys_and_values(layer)[0] for layer in cache.layers]
    compress(cache, 0.75)
    thinned = [keys_and_values(layer) for layer in cache.layers]
    assert [keys.shape[2] for keys, _ in thinned] == [8, 8, 2, 2]
    for (keys, values), before in list(zip(thinned, whole, strict=True))[2:]:
        assert torch.equal(values, keys + 10)
        for head in range(2):
            lowest = before[0, head].norm(dim=-1).sort().values[:2]
            assert torch.allclose(keys[0, head].norm(dim=-1).sort().values, lowest)


def test_layers_that_do_not_attend_to_everything_are_refused() -> None:
    gemma = tiny_base("gemma3")
    cache = DynamicCache(config=gemma.model.config)
    gemma.model(input_ids=torch.tensor([[1, 2, 3]]), past_key_values=cache, use_cache=True)
    with pytest.raises(ValueError, match="attend to all positions"):
        compress(cache, 0.5, skipped=0)
    with pytest.raises(ValueError, match="attend to all positions"):
        compress(read_prefix(gemma, (1, 2, 3)), 0.5, skipped=0)
    with pytest.raises(ValueError, match="attend to all positions"):
        require_compressible(gemma)


def test_layers_that_attend_to_everything_are_compressible(base: BaseModel) -> None:
    require_compressible(base)


def test_with_nothing_dropped_it_answers_as_the_engine_does(base: BaseModel) -> None:
    reader = CompressedReader(base, 0.0)
    assert answer(reader) == generate_batch(base, [tiny_request("1", PROMPT)])[0]
    (expected,) = score_batch(base, [(tiny_request("1", PROMPT), CONTINUATIONS)])
    for mine, engines in zip(scores(reader), expected, strict=True):
        assert mine == pytest.approx(engines.logprobs, abs=1e-9)


def test_dropping_changes_what_is_likely_and_counts_what_is_kept(base: BaseModel) -> None:
    whole, half = CompressedReader(base, 0.0, skipped=0), CompressedReader(base, 0.5, skipped=0)
    assert scores(CompressedReader(base, 0.5)) == scores(whole)  # the tiny model has but the two layers that are left whole
    assert scores(whole) != scores(half)
    assert (whole.prompt_tokens(PROMPT), half.prompt_tokens(PROMPT)) == (26, 16)


def test_positions_go_on_where_the_whole_prompt_ended(base: BaseModel) -> None:
    """Behind a prefix of which one position per head is left, the next token's key is as if all were there."""
    cache = read_prefix(base, PROMPT.bare)
    whole = Reading(base, read_prefix(base, PROMPT.bare), len(PROMPT.bare))
    compress(cache, 0.95, skipped=0)
    reading = Reading(base, cache, len(PROMPT.bare))
    reading.step(65)
    whole.step(65)
    assert reading.position == len(PROMPT.bare) + 1
    mine, other = (keys_and_values(kept_cache.layers[0])[0] for kept_cache in (cache, whole._cache))
    assert mine.shape[2] == 2
    assert torch.allclose(mine[:, :, -1], other[:, :, -1])


def test_a_reader_keeps_documents_apart(base: BaseModel) -> None:
    reader = CompressedReader(base, 0.5, skipped=0)
    other = tiny_prompt(2, bare=20, adapted=6)
    first = scores(reader)
    assert scores(reader, other) == scores(CompressedReader(base, 0.5, skipped=0), other)
    assert scores(reader) == first


def test_adapters_are_refused(base: BaseModel) -> None:
    module = ArtefactRef(digest="1", manifest_sha256="", directory=Path("x"))
    with pytest.raises(ValueError, match="wears no adapter"):
        CompressedReader(base, 0.5).generate([tiny_request("1", PROMPT, module)], lambda index, text: None)
