from __future__ import annotations

import asyncio

import pytest
import torch

from server.engine.base_model import BaseModel
from server.engine.embedded import EmbeddedEngine
from server.engine.options import EngineOptions
from server.engine.prompt import plain_ids
from server.engine.request import Score
from server.engine.score import score_batch
from server.errors import ContextLimit
from tests.support.tiny_models import EOS, tiny_base, tiny_prompt, tiny_request

TEXTS = ("nine metres", "green", "a")


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return tiny_base("llama", torch.float64)


def test_scores_are_those_of_the_engine_in_the_order_of_the_requests(base: BaseModel) -> None:
    requests = [tiny_request(str(n), tiny_prompt(n)) for n in range(5)]
    ids = [plain_ids(base.tokenizer, text) for text in TEXTS]
    told: dict[int, list[Score]] = {}
    found = score_batch(base, [(request, ids) for request in requests], options=EngineOptions(max_batch=2), on_finished=told.__setitem__)

    async def served() -> list[list[Score]]:
        engine = EmbeddedEngine(base)
        engine.start()
        scores = [await engine.score(request, TEXTS) for request in requests]
        await engine.drain()
        return scores

    expected = asyncio.run(served())
    assert [[score.text for score in scores] for scores in found] == [list(TEXTS)] * 5
    for scores, others in zip(found, expected, strict=True):
        for score, other in zip(scores, others, strict=True):
            assert score.logprobs == pytest.approx(other.logprobs, abs=1e-9)
    assert [told[index] for index in range(5)] == found


def test_an_end_of_turn_can_be_scored(base: BaseModel) -> None:
    prompt = tiny_prompt(1)
    ((score,),) = score_batch(base, [(tiny_request("1", prompt), [(65, EOS)])])
    with torch.no_grad():
        logits = base.model(input_ids=torch.tensor([[*prompt.ids, 65]])).logits[0, -2:].log_softmax(-1)
    assert score.logprobs == pytest.approx([float(logits[0, 65]), float(logits[1, EOS])], abs=1e-9)


def test_too_long_a_text_raises_and_the_model_is_given_back(base: BaseModel) -> None:
    layers = dict(base.model.named_modules())
    with pytest.raises(ContextLimit):
        score_batch(base, [(tiny_request("1", tiny_prompt(1)), [(65,) * 10_000])])
    assert dict(base.model.named_modules()) == layers


def test_nothing_to_score_is_no_score(base: BaseModel) -> None:
    assert score_batch(base, [(tiny_request("1", tiny_prompt(1)), [])]) == [[]]
