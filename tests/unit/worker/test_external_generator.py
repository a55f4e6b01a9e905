"""Texts from a service in the base model's place: what it is asked, and what its failures come to."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import count
from typing import Any

import httpx2
import pytest

from server.errors import GeneratorRefused, GeneratorUnavailable
from tests.support.fake_generator import FakeGenerator, Refusal, fake_generator
from tests.support.servers import free_port
from worker import external_generator
from worker.external_generator import CONCURRENCY, TRIES, ExternalGenerator, retry_after
from worker.synthesis.asks import Ask
from worker.training.fit import Stopped

KEY = "sk-canary"
SUMMARY = Ask(context="A Zitronenfalter is yellow.", instruction="Sum up.", max_tokens=6, temperature=0.5, top_p=0.9, seed=1)
QUESTION = replace(SUMMARY, instruction="")
BUSY = Refusal(status=503)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def service() -> Iterator[FakeGenerator]:
    with fake_generator() as running:
        yield running


def generator(service: FakeGenerator, **changes: Any) -> ExternalGenerator:
    return ExternalGenerator(**{"url": service.url, "model": "large", "api_key": KEY, "backoff": 0.001, **changes})


def texts(generate: ExternalGenerator, asks: list[Ask]) -> dict[int, str]:
    got: dict[int, str] = {}
    generate(asks, got.__setitem__)
    return got


def test_an_instruction_is_a_chat_turn_with_its_context(service: FakeGenerator) -> None:
    assert texts(generator(service), [SUMMARY]) == {0: "A text about it."}
    [asked] = service.asked
    assert asked == {
        "model": "large",
        "messages": [{"role": "user", "content": "A Zitronenfalter is yellow.\n\nSum up."}],
        "max_tokens": 6,
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 1,
    }
    assert (service.paths, service.keys) == (["/v1/chat/completions"], [f"Bearer {KEY}"])


def test_what_is_asked_by_example_is_one_too(service: FakeGenerator) -> None:
    texts(generator(service, url=service.url + "/"), [QUESTION, replace(QUESTION, completion="Text: x\nSo:")])
    first, second = (asked["messages"][0]["content"] for asked in sorted(service.asked, key=lambda asked: -len(str(asked))))
    assert first.endswith("Text: A Zitronenfalter is yellow.\nQuestion:")
    assert second.endswith("\n\nText: x\nSo:")
    assert all(asked["stop"] == ["\nText:"] for asked in service.asked)
    assert set(service.paths) == {"/v1/chat/completions"}


def test_without_a_key_none_is_sent(service: FakeGenerator) -> None:
    texts(generator(service, api_key=None), [SUMMARY])
    assert service.keys == [None]


def test_no_more_than_so_many_are_asked_at_once(service: FakeGenerator) -> None:
    service.seconds = 0.02
    assert len(texts(generator(service), [replace(SUMMARY, seed=seed) for seed in range(3 * CONCURRENCY)])) == 3 * CONCURRENCY
    assert 1 < service.most_at_once <= CONCURRENCY


def test_an_answer_without_text_is_an_empty_one(service: FakeGenerator) -> None:
    service.text = None
    assert texts(generator(service), [SUMMARY]) == {0: ""}


@pytest.mark.parametrize(
    "refusal",
    [Refusal(status=429), BUSY, Refusal(status=500), Refusal(status=200, body="<html>"), Refusal(status=200, body='{"choices": []}')],
    ids=["busy", "unavailable", "broken", "no-json", "no-choice"],
)
def test_what_may_pass_is_tried_again(service: FakeGenerator, refusal: Refusal) -> None:
    service.script = [refusal, refusal]
    assert texts(generator(service), [SUMMARY]) == {0: "A text about it."}
    assert len(service.asked) == 3


def test_a_service_that_stays_away_fails_the_attempt(service: FakeGenerator) -> None:
    service.script = [BUSY] * TRIES
    with pytest.raises(GeneratorUnavailable, match="answers 503; the training waits and tries again"):
        texts(generator(service), [SUMMARY])
    assert len(service.asked) == TRIES


def test_what_others_give_while_one_fails_is_kept(service: FakeGenerator) -> None:
    service.script = [Refusal(status=400)]
    got: dict[int, str] = {}
    with pytest.raises(GeneratorRefused):
        generator(service)([replace(SUMMARY, seed=seed) for seed in range(CONCURRENCY)], got.__setitem__)
    assert len(got) == CONCURRENCY - 1
    assert len(service.asked) == CONCURRENCY


@pytest.mark.parametrize("status", [400, 401, 403, 404, 307])
def test_a_refusal_is_not_repeated_and_says_what_to_check(service: FakeGenerator, status: int, caplog: pytest.LogCaptureFixture) -> None:
    service.script = [Refusal(status=status, headers={"Location": "/elsewhere"}, body=f'{{"error": "{KEY} {SUMMARY.context}"}}')]
    with caplog.at_level(logging.DEBUG, "worker"), pytest.raises(GeneratorRefused, match=rf"{status}: check KMSERVE_GENERATOR") as caught:
        texts(generator(service), [SUMMARY])
    assert len(service.asked) == 1
    assert KEY not in caught.value.detail + caplog.text + repr(generator(service))
    assert "Zitronenfalter" not in caught.value.detail + caplog.text


def test_nobody_there() -> None:
    nobody = ExternalGenerator(url=f"http://127.0.0.1:{free_port()}/v1", model="large", backoff=0.001)
    with pytest.raises(GeneratorUnavailable, match="cannot be reached"):
        texts(nobody, [SUMMARY])


def test_a_service_that_hangs(service: FakeGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(external_generator, "TRIES", 2)
    service.seconds = 0.2
    with pytest.raises(GeneratorUnavailable, match="did not answer in time"):
        texts(generator(service, timeout=httpx2.Timeout(0.02)), [SUMMARY])


def test_when_to_come_back_is_heeded_by_all(service: FakeGenerator) -> None:
    service.script = [Refusal(status=429, headers={"Retry-After": "0.3"})]
    asks = [replace(SUMMARY, seed=seed) for seed in range(2 * CONCURRENCY)]
    assert len(texts(generator(service), asks)) == len(asks)
    late = [at - service.times[0] for at in service.times if at - service.times[0] > 0.1]
    assert late
    assert min(late) >= 0.3


def test_more_patience_than_an_attempt_has(service: FakeGenerator) -> None:
    service.script = [Refusal(status=429, headers={"Retry-After": "3600"})]
    with pytest.raises(GeneratorUnavailable, match="429"):
        texts(generator(service), [SUMMARY])
    assert len(service.asked) == 1


def test_told_to_stop_it_sends_no_more_and_keeps_what_is_under_way(service: FakeGenerator) -> None:
    service.seconds = 0.05
    asked = count()
    got = texts(generator(service, should_stop=lambda: next(asked) > 1), [replace(SUMMARY, seed=seed) for seed in range(50)])
    assert 0 < len(got) == len(service.asked) <= 2 * CONCURRENCY


def test_told_to_stop_it_does_not_wait_for_a_service_that_hangs(service: FakeGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(external_generator, "DRAIN_SECONDS", 0.1)
    service.seconds = 1.0
    asked = count()
    began = time.monotonic()
    assert texts(generator(service, should_stop=lambda: next(asked) > 0), [SUMMARY]) == {}
    assert time.monotonic() - began < 0.8


def test_what_a_report_raises_ends_it(service: FakeGenerator) -> None:
    def stop(index: int, text: str) -> None:
        raise Stopped

    with pytest.raises(Stopped):
        generator(service)([replace(SUMMARY, seed=seed) for seed in range(30)], stop)
    assert len(service.asked) < 30


def test_retry_after_is_seconds_or_a_date() -> None:
    assert retry_after("7") == 7.0
    assert retry_after("-3") == 0.0
    soon = retry_after(format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True))
    assert soon is not None
    assert 55 < soon <= 60
    assert [retry_after(value) for value in (None, "soon", "nan", "inf")] == [None, None, None, None]
