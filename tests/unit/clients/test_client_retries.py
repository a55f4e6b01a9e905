from __future__ import annotations

from pathlib import Path

import httpx2
import pytest
from kmserve_client import errors
from kmserve_client.effects import Pause
from kmserve_client.retries import Retries

from tests.support.client_caller import Caller
from tests.support.scripted_api import Answer, ScriptedApi, answer, document, problem


@pytest.mark.parametrize(
    "trouble",
    [
        lambda _: problem(429, "engine_busy", headers={"retry-after": "0"}),
        lambda _: problem(503, "engine_stopped"),
        lambda _: problem(409, "idempotency_in_flight"),
        httpx2.ConnectError("refused"),
        httpx2.ReadError("reset"),
        httpx2.ConnectTimeout("slow"),
    ],
)
def test_what_can_mend_is_tried_again(caller: Caller, trouble: Answer) -> None:
    api = ScriptedApi(trouble, trouble, httpx2.Response(200, json=document()))
    assert caller.call(api, "document", "doc_1").id == "doc_1"
    assert len(api.requests) == 3


@pytest.mark.parametrize("code", ["module_corrupt", "module_wrong_base", "index_mismatch", "base_model_unusable"])
def test_what_waits_for_a_person_is_not(caller: Caller, code: str) -> None:
    api = ScriptedApi(problem(503, code))
    with pytest.raises(errors.Unavailable):
        caller.call(api, "ask", "Why?")


def test_the_last_error_is_raised_when_attempts_run_out(caller: Caller) -> None:
    api = ScriptedApi(*(problem(429, "engine_busy", detail=f"try {n}") for n in range(1, 4)))
    with pytest.raises(errors.TooManyRequests, match="try 3"):
        caller.call(api, "ask", "Why?")


def test_lost_connections_name_the_server(caller: Caller) -> None:
    with pytest.raises(errors.ConnectionFailed, match="http://server"):
        caller.call(ScriptedApi(*(httpx2.ConnectError("refused") for _ in range(3))), "document", "doc_1")


def test_a_repeated_upload_keeps_its_key_and_starts_at_the_first_byte(caller: Caller, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"all of it")
    api = ScriptedApi(httpx2.ReadError("reset"), problem(409, "idempotency_in_flight"), httpx2.Response(202, json=document()))
    caller.call(api, "upload", path)
    assert len({request.headers["idempotency-key"] for request in api.requests}) == 1
    assert all(b"all of it" in request.content for request in api.requests)


@pytest.mark.parametrize(("operation", "arguments"), [("retry", ["doc_1"]), ("train", ["doc_1"]), ("create_api_key", ["reader", ["ask"]])])
def test_what_is_not_idempotent_is_sent_once(caller: Caller, operation: str, arguments: list[object]) -> None:
    api = ScriptedApi(httpx2.ReadError("reset"))
    with pytest.raises(errors.ConnectionFailed):
        caller.call(api, operation, *arguments)


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (401, "unauthorized", errors.Unauthorized),
        (403, "scope_missing", errors.Forbidden),
        (404, "document_not_found", errors.NotFound),
        (409, "module_not_ready", errors.Conflict),
        (413, "upload_too_large", errors.TooLarge),
        (415, "unsupported_media_type", errors.UnsupportedMediaType),
        (422, "unknown_mode", errors.InvalidInput),
        (500, "internal_error", errors.ApiError),
    ],
)
def test_a_problem_becomes_its_exception(caller: Caller, status: int, code: str, kind: type[errors.ApiError]) -> None:
    with pytest.raises(kind, match="because") as caught:
        caller.call(ScriptedApi(problem(status, code, job="/jobs/job_1")), "ask", "Why?")
    assert type(caught.value) is kind
    assert (caught.value.status, caught.value.code, caught.value.detail) == (status, code, "because")
    assert caught.value.extra == {"job": "/jobs/job_1"}


@pytest.mark.parametrize("body", ["<html>Bad Gateway</html>", "[1]", ""])
def test_a_proxys_page_is_an_api_error_too(caller: Caller, body: str) -> None:
    with pytest.raises(errors.ApiError) as caught:
        caller.call(ScriptedApi(httpx2.Response(502, text=body)), "ask", "Why?")
    assert caught.value.code == "http_502"


def test_retry_after_is_a_floor_and_backoff_grows() -> None:
    longest_draws = Retries(attempts=9, base=1.0, longest=10.0, uniform=lambda low, high: high)
    assert [longest_draws.delay(Pause(attempt=n)) for n in (1, 2, 3, 4, 5)] == [1.0, 2.0, 4.0, 8.0, 10.0]
    assert longest_draws.delay(Pause(attempt=1, at_least=7.0)) == 7.0


def test_no_attempt_after_the_last_or_after_a_too_long_retry_after() -> None:
    retries = Retries(attempts=3, longest=10.0)
    assert retries.delay(Pause(attempt=3)) is None
    assert retries.delay(Pause(attempt=1, at_least=11.0)) is None


def test_retry_after_reaches_the_error(caller: Caller) -> None:
    with pytest.raises(errors.TooManyRequests) as caught:
        caller.call(ScriptedApi(problem(429, "engine_busy", headers={"retry-after": "60"})), "ask", "Why?")
    assert caught.value.retry_after == 60.0


def test_a_good_answer_is_asked_for_once(caller: Caller) -> None:
    api = ScriptedApi(httpx2.Response(200, json=answer()))
    assert caller.call(api, "ask", "How long?").answer == "31 days"
    assert len(api.requests) == 1


def test_a_server_that_is_too_slow_is_not_asked_again(caller: Caller) -> None:
    api = ScriptedApi(httpx2.ReadTimeout("slow"))
    with pytest.raises(errors.TimedOut, match="in time"):
        caller.call(api, "ask", "Why?")
