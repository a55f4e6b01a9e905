"""Generates with a model behind an OpenAI-compatible API in the base model's place. What it is asked holds the document's text.

Knows nothing of jobs or settings. Neither logs nor raises what is sent or answered: a reply may quote the document.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final

import httpx2

from server.errors import GeneratorRefused, GeneratorUnavailable
from worker.synthesis.asks import Ask

CONCURRENCY: Final = 8
TRIES: Final = 6
"""Of one request: four waits of a second and more, together about a minute."""
LONGEST_BACKOFF: Final = 30.0
LONGEST_RETRY_AFTER: Final = 300.0
"""A service that asks for more patience ends the attempt; the job's own retries wait longer."""
TIMEOUT: Final = httpx2.Timeout(connect=10.0, read=120.0, write=30.0, pool=None)
DRAIN_SECONDS: Final = 10.0
"""How long requests that are under way are waited for once no more are sent: they are paid for. Below the trainer's grace."""
POLL_SECONDS: Final = 0.2
GO_ON: Final = 'Go on with this text in the same form. Write only what comes next, and end before the next "Text:".\n\n'
NEXT_TEXT: Final = "\nText:"
_AGAIN: Final = frozenset({408, 425, 429, 500, 502, 503, 504, 529})


@dataclass(kw_only=True)
class _Pause:
    """One service's request to wait holds for all requests."""

    until: float = 0.0

    def extend(self, seconds: float) -> None:
        self.until = max(self.until, time.monotonic() + seconds)

    async def over(self) -> None:
        if (left := self.until - time.monotonic()) > 0:
            await asyncio.sleep(left)
            await self.over()  # it may have become longer


class _Again(Exception):
    """Worth another try, at the earliest after so many seconds where the service said so."""

    def __init__(self, why: str, seconds: float | None = None) -> None:
        super().__init__(why)
        self.seconds = seconds


@dataclass(frozen=True, kw_only=True)
class ExternalGenerator:
    """`url` is the API's address up to and with its version, as `https://api.example.com/v1`. `should_stop` is asked between requests."""

    url: str
    model: str
    api_key: str | None = field(default=None, repr=False)
    should_stop: Callable[[], bool] = lambda: False
    backoff: float = 1.0
    """Seconds before the second try, doubled before each further one."""
    timeout: httpx2.Timeout = field(default_factory=lambda: TIMEOUT)

    def __call__(self, asks: Sequence[Ask], on_finished: Callable[[int, str], None]) -> None:
        """Raises GeneratorUnavailable, GeneratorRefused, once what is under way has ended and was handed over."""
        logging.getLogger("httpx2").setLevel(logging.WARNING)  # it logs a line for each request
        asyncio.run(self._all(asks, on_finished))

    async def _all(self, asks: Sequence[Ask], on_finished: Callable[[int, str], None]) -> None:
        waiting = iter(enumerate(asks))
        running: dict[asyncio.Task[str], int] = {}
        failure: Exception | None = None
        drained_at = float("inf")
        pause = _Pause()
        headers = {} if self.api_key is None else {"Authorization": f"Bearer {self.api_key}"}
        async with httpx2.AsyncClient(headers=headers, timeout=self.timeout) as client:
            try:
                while time.monotonic() < drained_at:
                    ending = failure is not None or self.should_stop()
                    if ending:
                        drained_at = min(drained_at, time.monotonic() + DRAIN_SECONDS)
                    while not ending and len(running) < CONCURRENCY and (following := next(waiting, None)) is not None:
                        running[asyncio.create_task(self._text(client, following[1], pause))] = following[0]
                    if not running:
                        break
                    done, _ = await asyncio.wait(running, timeout=POLL_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        index = running.pop(task)
                        if (error := task.exception()) is None:
                            try:
                                on_finished(index, task.result())
                            except Exception as stop:  # what is under way is paid for: it is handed over first
                                failure = failure or stop
                        elif isinstance(error, GeneratorUnavailable | GeneratorRefused):
                            failure = failure or error
                        else:
                            raise error
            finally:
                for task in running:
                    task.cancel()
                await asyncio.gather(*running, return_exceptions=True)
        if failure is not None and (not self.should_stop() or not isinstance(failure, GeneratorUnavailable | GeneratorRefused)):
            raise failure

    async def _text(self, client: httpx2.AsyncClient, ask: Ask, pause: _Pause) -> str:
        why = ""
        for number in range(TRIES):
            if number and self.should_stop():
                break
            await pause.over()
            try:
                return await self._once(client, ask)
            except _Again as error:
                why = str(error)
                if error.seconds is not None:
                    if error.seconds > LONGEST_RETRY_AFTER:
                        break
                    pause.extend(error.seconds)
                if number + 1 < TRIES:
                    await asyncio.sleep(min(LONGEST_BACKOFF, self.backoff * 2**number) * random.uniform(0.5, 1.0))
        raise GeneratorUnavailable(f"the generator that training texts are asked of {why}; the training waits and tries again")

    async def _once(self, client: httpx2.AsyncClient, ask: Ask) -> str:
        """Raises _Again, GeneratorRefused."""
        try:
            reply = await client.post(f"{self.url.rstrip('/')}/chat/completions", json=self._body(ask))
        except httpx2.TimeoutException:
            raise _Again("did not answer in time") from None
        except httpx2.RequestError:
            raise _Again("cannot be reached") from None
        if reply.status_code in _AGAIN:
            raise _Again(f"answers {reply.status_code}", retry_after(reply.headers.get("Retry-After")))
        if reply.status_code != 200:
            raise GeneratorRefused(
                f"the generator that training texts are asked of refuses with {reply.status_code}: "
                "check KMSERVE_GENERATOR_URL, KMSERVE_GENERATOR_MODEL and KMSERVE_GENERATOR_API_KEY"
            )
        try:
            content = reply.json()["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError):
            raise _Again("answers with something that is no chat completion") from None
        return content if isinstance(content, str) else ""

    def _body(self, ask: Ask) -> dict[str, Any]:
        """A chat turn in any case: not every service completes plain text."""
        content = f"{ask.context}\n\n{ask.instruction}" if ask.instruction else GO_ON + ask.plain_text
        numbers = {"max_tokens": ask.max_tokens, "temperature": ask.temperature, "top_p": ask.top_p, "seed": ask.seed}
        stop = {} if ask.instruction else {"stop": [NEXT_TEXT]}
        return {"model": self.model, "messages": [{"role": "user", "content": content}], **numbers, **stop}


def retry_after(value: str | None) -> float | None:
    """Seconds, of a header that gives seconds or a date; None for none, or one that says nothing."""
    if value is None:
        return None
    with suppress(ValueError):
        return max(0.0, seconds) if math.isfinite(seconds := float(value)) else None
    with suppress(ValueError):
        date = parsedate_to_datetime(value)
        return max(0.0, ((date if date.tzinfo else date.replace(tzinfo=UTC)) - datetime.now(UTC)).total_seconds())
    return None
