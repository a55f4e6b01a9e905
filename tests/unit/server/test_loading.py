"""Parts that cannot be loaded: what may pass is tried again with ever longer pauses, what cannot is final at once."""

from __future__ import annotations

import errno
from itertools import islice
from typing import Any

import httpx2
import pytest
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, RepositoryNotFoundError

from server.errors import BaseModelNotFound, BaseModelUnusable, EmbedderNotFound, IndexMismatch, IndexUnavailable, KmserveError, Starting
from server.loading import explained, passes, pauses, until_it_works
from server.parts import Loading

FULL = OSError(errno.ENOSPC, "No space left on device", "/secret/path")


class Step:
    """Fails with each of `errors`, then gives 7."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.slept: list[float] = []
        self.loading: Loading[int] = Loading()
        self.said: list[Starting] = []

    async def __call__(self) -> int:
        if self.errors:
            raise self.errors.pop(0)
        return 7

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        with pytest.raises(Starting) as caught:
            self.loading.get()
        self.said.append(caught.value)

    async def run(self) -> int:
        return await until_it_works(self, self.loading, self.sleep)


def raised_from(error: KmserveError, cause: BaseException) -> KmserveError:
    error.__cause__ = cause
    return error


def hub(kind: type[HfHubHTTPError], status: int) -> HfHubHTTPError:
    return kind("from the hub", response=httpx2.Response(status, request=httpx2.Request("GET", "https://hub.invalid")))


async def test_an_index_that_is_there_later_is_waited_for() -> None:
    step = Step(*(IndexUnavailable("the vector index does not answer") for _ in range(3)))
    assert await step.run() == 7
    assert step.slept == [1, 2, 4]
    assert step.said[2].detail == "the server cannot answer yet: the vector index does not answer; it is tried again in 4 s"
    failure = {"code": "index_unavailable", "detail": "the vector index does not answer", "attempts": 3, "retry_in_seconds": 4}
    assert step.said[2].extra == {"failure": failure, "stage": "waiting"}


def test_the_pauses_grow_to_half_a_minute() -> None:
    assert list(islice(pauses(), 7)) == [1, 2, 4, 8, 16, 30, 30]


async def test_what_is_ready_says_nothing_of_failures_before() -> None:
    step = Step(FULL)
    step.loading.ready(await step.run())
    assert step.loading.get() == 7


@pytest.mark.parametrize(
    "error",
    [
        FULL,
        raised_from(BaseModelUnusable("the file cannot be converted"), FULL),
        RuntimeError("CUDA out of memory"),
        ConnectionRefusedError(errno.ECONNREFUSED, "refused"),
        raised_from(EmbedderNotFound("not reachable"), LocalEntryNotFoundError("no connection")),
        raised_from(BaseModelNotFound("not fetched"), hub(HfHubHTTPError, 502)),
    ],
)
async def test_what_may_pass_is_tried_again(error: Exception) -> None:
    assert await Step(error).run() == 7


@pytest.mark.parametrize(
    "error",
    [
        BaseModelNotFound("KMSERVE_BASE_MODEL names nothing"),
        IndexMismatch("another model's"),
        raised_from(BaseModelUnusable("damaged"), ValueError("bad magic")),
        raised_from(BaseModelNotFound("not fetched"), hub(RepositoryNotFoundError, 404)),
    ],
)
async def test_what_settings_must_mend_is_final(error: KmserveError) -> None:
    step = Step(error)
    with pytest.raises(type(error)) as caught:
        await step.run()
    assert caught.value is error
    assert step.slept == []


def test_a_hub_that_was_switched_off_is_not_waited_for() -> None:
    missing = LocalEntryNotFoundError("not cached")
    missing.__cause__ = OfflineModeIsEnabled("HF_HUB_OFFLINE=1")
    assert not passes(raised_from(EmbedderNotFound("not reachable"), missing))


def test_a_full_disk_is_called_one_and_no_path_is_told() -> None:
    for error in (FULL, raised_from(BaseModelUnusable("damaged"), FULL)):
        found = explained(error)
        assert (found.code, "/secret" in found.detail) == ("storage_full", False)


def test_an_unknown_error_is_for_the_log() -> None:
    assert "secret" not in explained(RuntimeError("secret")).detail


async def test_the_log_says_what_fails_and_when_it_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    await Step(IndexUnavailable("the vector index does not answer")).run()
    assert "[index_unavailable]: the vector index does not answer; tried again in 1 s" in caplog.text


def test_a_failure_is_told_while_the_next_attempt_runs() -> None:
    loading: Loading[Any] = Loading()
    loading.failed("storage_full", "the disk is full", retry_in=-1)
    loading.progress("saving", 0, 1)
    with pytest.raises(Starting, match="the disk is full; it is being tried again") as caught:
        loading.get()
    assert caught.value.extra["stage"] == "saving"
