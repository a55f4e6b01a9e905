"""Requests through the batch engine: answers, scores, cancelling, limits."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest
import torch

from server.engine.base_model import BaseModel
from server.engine.batch_engine import BatchEngine
from server.engine.options import EngineOptions
from server.engine.prompt import Prompt
from server.engine.request import EngineRequest, FinishReason, Scope, Score
from server.errors import ContextLimit, DeadlineExceeded, InvalidInput, TooManyRequests
from tests.support.engines import Ear, Make, answer, finish, spoken, start
from tests.support.oracle import Oracle
from tests.support.tiny_models import CONTEXT, EOS, VOCABULARY, Shelf, tiny_artefact, tiny_base, tiny_prompt, tiny_request


def test_an_answer_tells_its_text_tokens_and_counts(make: Make, oracle: Oracle) -> None:
    prompt = tiny_prompt(1)
    ear = answer(make(), tiny_request("a", prompt, max_tokens=6))
    assert ear.tokens == spoken(oracle, prompt, 6)
    assert (ear.reason, ear.deltas[-1].prompt_tokens, ear.deltas[-1].completion_tokens) == (FinishReason.LENGTH, len(prompt), 6)
    assert all(delta.finish_reason is None for delta in ear.deltas[:-1])


def test_the_end_of_turn_token_stops_and_is_counted_but_not_told(
    base: BaseModel, make: Make, oracle: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = tiny_prompt(1)
    tokens = oracle.greedy(prompt, 4).tokens
    engine = make()
    monkeypatch.setattr(engine, "base", replaced(base, eos_ids=frozenset({tokens[3]})))
    ear = answer(engine, tiny_request("a", prompt, max_tokens=9))
    assert ear.tokens == tokens[:3]
    assert (ear.reason, ear.deltas[-1].completion_tokens) == (FinishReason.STOP, 4)


def replaced(base: BaseModel, **changes: Any) -> BaseModel:
    return BaseModel(**{**base.__dict__, **changes})


def test_long_prompts_are_read_in_pieces_while_others_go_on(make: Make, oracle: Oracle) -> None:
    engine = make(step_tokens=8)
    short, long = tiny_prompt(1), tiny_prompt(2, bare=60)
    first = start(engine, tiny_request("short", short, max_tokens=10))
    for _ in range(4):
        engine.step()
    second = start(engine, tiny_request("long", long, max_tokens=3))
    engine.step()
    told = len(first.tokens)
    engine.step()
    assert not second.events
    assert len(first.tokens) >= told
    finish(engine)
    assert first.tokens == spoken(oracle, short, 10)
    assert second.tokens == spoken(oracle, long, 3)


def test_a_cancelled_request_keeps_what_it_was_told_and_frees_its_place(make: Make, oracle: Oracle) -> None:
    engine = make(max_batch=1)
    prompt = tiny_prompt(1)
    first = start(engine, tiny_request("first", prompt, max_tokens=100))
    second = start(engine, tiny_request("second", prompt, max_tokens=4))
    for _ in range(5):
        engine.step()
    engine.cancel("first")
    engine.cancel("unknown")
    finish(engine)
    assert first.reason is FinishReason.CANCELLED
    assert first.tokens == spoken(oracle, prompt, 5)
    assert second.tokens == spoken(oracle, prompt, 4)


def test_a_waiting_request_can_be_cancelled(make: Make) -> None:
    engine = make(max_batch=1)
    start(engine, tiny_request("first", tiny_prompt(1)))
    engine.step()
    second = start(engine, tiny_request("second", tiny_prompt(1)))
    engine.cancel("second")
    engine.step()
    assert second.reason is FinishReason.CANCELLED
    finish(engine)


def test_a_full_queue_turns_new_requests_away(make: Make) -> None:
    engine = make(max_batch=1, max_queue=2)
    ears = [start(engine, tiny_request(str(number), tiny_prompt(number))) for number in range(4)]
    assert isinstance(ears[3].error, TooManyRequests)
    assert ears[3].error.retry_after >= 1
    finish(engine)
    assert [ear.reason for ear in ears[:3]] == [FinishReason.LENGTH] * 3


def test_a_request_beyond_the_context_is_refused_with_numbers(make: Make) -> None:
    engine = make()
    prompt = tiny_prompt(1, bare=40, adapted=10)
    engine.generation(tiny_request("fits", prompt, max_tokens=CONTEXT - 50), Ear())
    with pytest.raises(ContextLimit) as caught:
        engine.generation(tiny_request("long", prompt, max_tokens=CONTEXT - 49), Ear())
    assert caught.value.extra == {"prompt_tokens": 50, "max_tokens": CONTEXT - 49, "limit": CONTEXT}
    with pytest.raises(ContextLimit):
        engine.scoring(tiny_request("long", prompt), ["x" * (CONTEXT - 49)], Ear())


def test_a_request_larger_than_the_cache_is_refused(make: Make) -> None:
    with pytest.raises(ContextLimit):
        make(kv_tokens=64).generation(tiny_request("long", tiny_prompt(1), max_tokens=60), Ear())


def test_the_whole_context_can_be_used(make: Make) -> None:
    ear = answer(make(), tiny_request("fits", tiny_prompt(1, bare=CONTEXT - 12, adapted=10), max_tokens=2))
    assert ear.reason is FinishReason.LENGTH


@pytest.mark.parametrize("prompt", [Prompt(bare=(), adapted=()), Prompt(bare=(VOCABULARY,), adapted=()), Prompt(bare=(-1,), adapted=())])
def test_a_prompt_the_model_cannot_read_is_refused(make: Make, prompt: Prompt) -> None:
    with pytest.raises(InvalidInput):
        make().generation(tiny_request("a", prompt), Ear())


@pytest.mark.parametrize(
    "sampling", [{"max_tokens": 0}, {"temperature": -1.0}, {"temperature": float("nan")}, {"top_p": 0.0}, {"top_k": -1}, {"logprobs": 21}]
)
def test_sampling_that_means_nothing_is_refused(make: Make, sampling: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        make().generation(tiny_request("a", tiny_prompt(1), **sampling), Ear())


def score(engine: BatchEngine, request: EngineRequest, continuations: list[str]) -> list[Score]:
    ear = Ear()
    engine.add(engine.scoring(request, continuations, ear))
    finish(engine)
    assert isinstance(ear.events[-1], list)
    return ear.events[-1]


@pytest.mark.parametrize("step_tokens", [512, 5])
@pytest.mark.parametrize("scope", list(Scope))
def test_scores_are_the_oracles_log_probabilities(
    base: BaseModel, make: Make, oracle: Oracle, shelf: Shelf, scope: Scope, step_tokens: int
) -> None:
    artefact, prompt = tiny_artefact(base, 1, scope=scope), tiny_prompt(1, bare=20)
    engine = make(step_tokens=step_tokens)
    neighbour = start(engine, tiny_request("neighbour", tiny_prompt(2), max_tokens=30))
    scores = score(engine, tiny_request("a", prompt, shelf.put("module", artefact)), ["thirty days", "45", "", "x"])
    assert [score.text for score in scores] == ["thirty days", "45", "", "x"]
    assert [len(score.token_ids) for score in scores] == [11, 2, 0, 1]
    for told in scores:
        if told.token_ids:
            logits = oracle.follow(prompt, told.token_ids, artefact)
            expected = torch.log_softmax(logits, -1).gather(1, torch.tensor(told.token_ids)[:, None])[:, 0]
            assert torch.allclose(torch.tensor(told.logprobs, dtype=torch.float64), expected, atol=1e-9, rtol=0)
    assert neighbour.reason is not None


def test_the_prompt_is_read_once_for_all_continuations(make: Make) -> None:
    engine = make()
    score(engine, tiny_request("a", tiny_prompt(1, bare=100)), ["one", "two", "three"])
    assert engine.stats()["prompt_tokens"] < 130


def test_nothing_to_score_is_told_at_once(make: Make) -> None:
    assert score(make(), tiny_request("a", tiny_prompt(1)), []) == []


def test_a_seeded_request_does_not_depend_on_its_neighbours(make: Make) -> None:
    engine = make()
    sampling: dict[str, Any] = {"max_tokens": 20, "temperature": 1.0, "seed": 5, "top_p": 0.9}
    alone = answer(engine, tiny_request("a", tiny_prompt(1), **sampling)).tokens
    ears = [start(engine, tiny_request(str(n), tiny_prompt(n), temperature=1.0, seed=n, max_tokens=5 + n)) for n in range(5)]
    ears.append(start(engine, tiny_request("a", tiny_prompt(1), **sampling)))
    finish(engine)
    assert ears[-1].tokens == alone


def test_closing_leaves_the_model_as_it_was(base: BaseModel, shelf: Shelf) -> None:
    layers = dict(base.model.named_modules())
    attention = base.model.config._attn_implementation
    ids = torch.tensor([[1, 2, 3]])
    before = base.model(input_ids=ids).logits
    engine = BatchEngine(base, EngineOptions(), shelf.read)
    answer(engine, tiny_request("a", tiny_prompt(1), shelf.put("module", tiny_artefact(base, 1))))
    engine.close()
    assert dict(base.model.named_modules()) == layers
    assert base.model.config._attn_implementation == attention
    assert torch.equal(base.model(input_ids=ids).logits, before)


def test_one_model_serves_one_engine(base: BaseModel, make: Make) -> None:
    make()
    with pytest.raises(ValueError, match="another engine"):
        BatchEngine(base, EngineOptions())


def test_the_tokenizers_end_is_the_models_end() -> None:
    assert tiny_base().tokenizer.eos_token_id == EOS


def test_a_late_request_ends_with_its_own_error_and_frees_its_place(make: Make, oracle: Oracle, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, now = make(max_batch=1), [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    late = start(engine, replace(tiny_request("late", tiny_prompt(1), max_tokens=50), timeout=5.0))
    waiting = start(engine, replace(tiny_request("waiting", tiny_prompt(2), max_tokens=50), timeout=4.0))
    patient = start(engine, tiny_request("patient", tiny_prompt(3), max_tokens=4))
    engine.step()
    now[0] = 104.5
    engine.step()
    assert isinstance(waiting.error, DeadlineExceeded)
    assert late.tokens
    now[0] = 105.5
    finish(engine)
    assert "within 5 seconds" in str(late.error)
    assert patient.tokens == spoken(oracle, tiny_prompt(3), 4)


def test_log_probabilities_are_the_models_own(make: Make, oracle: Oracle) -> None:
    prompt = tiny_prompt(1)
    ear = answer(make(), tiny_request("a", prompt, max_tokens=5, logprobs=2, temperature=1.5, seed=3))
    told = [logprob for delta in ear.deltas for logprob in delta.logprobs]
    assert tuple(logprob.token_id for logprob in told) == ear.tokens
    expected = torch.log_softmax(oracle.follow(prompt, ear.tokens), dim=-1)
    for row, logprob in zip(expected, told, strict=True):
        values, ids = row.topk(2)
        assert logprob.logprob == pytest.approx(float(row[logprob.token_id]), abs=1e-9)
        assert [token for token, _ in logprob.top] == ids.tolist()
        assert [value for _, value in logprob.top] == pytest.approx(values.tolist(), abs=1e-9)


def test_without_asking_there_are_no_log_probabilities(make: Make) -> None:
    ear = answer(make(), tiny_request("a", tiny_prompt(1), max_tokens=3))
    assert not any(delta.logprobs for delta in ear.deltas)


def test_a_tenant_with_many_requests_does_not_hold_up_another(make: Make) -> None:
    engine = make(max_batch=2)
    many = [start(engine, tiny_request(f"many-{n}", tiny_prompt(n), max_tokens=4)) for n in range(10)]
    engine.step()
    one = start(engine, replace(tiny_request("one", tiny_prompt(20), max_tokens=4), tenant="other"))
    while not one.events:
        engine.step()
    assert sum(bool(ear.events) for ear in many) <= 4
    finish(engine)
