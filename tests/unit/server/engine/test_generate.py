from __future__ import annotations

from itertools import count

import pytest
import torch

from server.engine.base_model import BaseModel
from server.engine.embedded import EmbeddedEngine
from server.engine.generate import generate_batch
from server.engine.options import EngineOptions
from server.engine.request import EngineRequest
from server.errors import ContextLimit
from tests.support.tiny_models import tiny_base, tiny_prompt, tiny_request


@pytest.fixture(scope="module")
def base() -> BaseModel:
    base = tiny_base("llama", torch.float64)
    return BaseModel(**{**base.__dict__, "eos_ids": frozenset()})


def requests(number: int, tokens: int = 6) -> list[EngineRequest]:
    return [tiny_request(str(n), tiny_prompt(n), max_tokens=tokens + n % 3, temperature=0.8, seed=n) for n in range(number)]


def test_answers_come_in_the_order_of_the_requests(base: BaseModel) -> None:
    alone = [generate_batch(base, [request])[0] for request in requests(5)]
    assert generate_batch(base, requests(5), options=EngineOptions(max_batch=2)) == alone
    assert len(set(alone)) == 5


def test_each_answer_is_told_when_it_is_finished(base: BaseModel) -> None:
    told: dict[int, str] = {}
    texts = generate_batch(base, requests(7), options=EngineOptions(max_batch=3), on_finished=told.__setitem__)
    assert [told[index] for index in range(7)] == texts


def test_it_stops_when_asked_and_keeps_what_is_finished(base: BaseModel) -> None:
    steps = count()
    texts = generate_batch(base, requests(6), options=EngineOptions(max_batch=2), should_stop=lambda: next(steps) > 10)
    assert None in texts
    assert any(texts)


def test_more_requests_than_any_queue(base: BaseModel) -> None:
    options = EngineOptions(max_batch=16, max_queue=0)
    assert None not in generate_batch(base, requests(60, tokens=1), options=options)


def test_a_request_that_fails_raises_and_the_model_is_given_back(base: BaseModel) -> None:
    layers = dict(base.model.named_modules())
    with pytest.raises(ContextLimit):
        generate_batch(base, [*requests(2), tiny_request("long", tiny_prompt(1), max_tokens=10_000)])
    assert dict(base.model.named_modules()) == layers


def test_an_error_of_the_callback_is_the_callers(base: BaseModel) -> None:
    def full(index: int, text: str) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        generate_batch(base, requests(2), on_finished=full)
    EmbeddedEngine(base)._batch.close()


def test_the_model_can_be_trained_afterwards(base: BaseModel) -> None:
    generate_batch(base, requests(1))
    weight = base.model.get_parameter("model.layers.0.mlp.up_proj.weight")
    weight.requires_grad_(True)
    base.model(input_ids=torch.tensor([[1, 2, 3]])).logits.sum().backward()
    assert weight.grad is not None
    weight.requires_grad_(False)
