"""When a call is repeated and how long to wait before. Knows nothing of what the calls mean."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from kmserve_client.effects import Call, Effect, Flow, Open, Pause, Reply
from kmserve_client.errors import ApiError, ConnectionFailed, TimedOut, api_error

PASSING = frozenset({"starting", "engine_stopped", "database_unavailable", "index_unavailable", "unavailable", "http_503"})
"""503s that pass by themselves; the others (`module_corrupt`, ...) stay until somebody acts."""


@dataclass(frozen=True, kw_only=True)
class Retries:
    """Exponential backoff with full jitter: at most `attempts` in all, the n-th pause is uniform in (0, base·2^(n-1)] seconds, never
    above `longest` and never below the server's Retry-After. A Retry-After above `longest` ends the attempts."""

    attempts: int = 5
    base: float = 0.5
    longest: float = 30.0
    uniform: Callable[[float, float], float] = field(default=random.uniform, repr=False)

    def delay(self, pause: Pause) -> float | None:
        """Seconds to wait before the next attempt, or None when there is none."""
        at_least = pause.at_least or 0.0
        if pause.attempt >= self.attempts or at_least > self.longest:
            return None
        return max(at_least, self.uniform(0.0, min(self.longest, self.base * 2.0 ** (pause.attempt - 1))))


def send(call: Call) -> Flow[Reply]:
    """A call's 2xx or 3xx reply, repeated while that can help. Raises the last ApiError or ConnectionFailed."""
    return (yield from attempts(call, call))


def open_stream(call: Call) -> Flow[Reply]:
    """Like `send`, but the reply's body stays open as the client's event stream."""
    return (yield from attempts(Open(call=call), call))


def attempts(effect: Effect, call: Call) -> Flow[Reply]:
    attempt = 1
    while True:
        outcome: Reply | ConnectionFailed = yield effect
        error = refusal(outcome)
        if error is None:
            assert isinstance(outcome, Reply)
            return outcome
        if not (call.repeatable and worth_repeating(error)):
            raise error
        again: bool = yield Pause(attempt=attempt, at_least=getattr(error, "retry_after", None))
        if not again:
            raise error
        attempt += 1


def refusal(outcome: Reply | ConnectionFailed) -> ApiError | ConnectionFailed | None:
    if isinstance(outcome, ConnectionFailed):
        return outcome
    if outcome.status < 400:
        return None
    return api_error(outcome.status, outcome.body, retry_after(outcome))


def worth_repeating(error: ApiError | ConnectionFailed) -> bool:
    """Not after a timeout: a server that is too slow is not helped by being asked again."""
    if isinstance(error, ConnectionFailed):
        return not isinstance(error, TimedOut)
    if error.status == 429:
        return True
    if error.status == 503:
        return error.code in PASSING
    return error.code == "idempotency_in_flight"


def retry_after(reply: Reply) -> float | None:
    """Seconds of a Retry-After header; its date form, which this API never sends, is ignored."""
    try:
        return max(0.0, float(reply.headers["retry-after"]))
    except (KeyError, ValueError):
        return None
