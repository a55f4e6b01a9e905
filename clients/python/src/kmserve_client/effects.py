"""What an operation asks of the outside world. Knows no sockets: a client, blocking or async, answers each effect.

An operation is a generator (`Flow`): it yields effects, receives their outcomes and returns its result. A `StreamFlow` also yields
`Emit`s, the values its caller iterates over. So every rule of the API is written once, and a client is only a loop.

    Call       -> Reply | ConnectionFailed           one HTTP exchange, body read
    Open       -> Reply | ConnectionFailed           the same, but a 2xx body stays open as an event stream
    NextEvent  -> ServerSentEvent | None | ConnectionFailed    the open stream's next event, None at its end
    Pause      -> bool                               wait before another attempt; False: no attempts left
    Emit       -> None
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO, Generic, TypeAlias, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class File:
    """An upload's bytes. `open` is called once per attempt, so that a repeated upload starts at the first byte."""

    name: str
    open: Callable[[], BinaryIO]


@dataclass(frozen=True, kw_only=True)
class Call:
    """`repeatable`: doing it twice is the same as doing it once. `timeout` seconds replaces the client's for this call."""

    method: str
    path: str
    params: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    json: Mapping[str, Any] | None = None
    form: Mapping[str, str] = field(default_factory=dict)
    file: File | None = None
    repeatable: bool = False
    timeout: float | None = None

    def with_(self, **changes: Any) -> Call:
        return replace(self, **changes)


@dataclass(frozen=True, kw_only=True)
class Reply:
    """Header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, kw_only=True)
class Open:
    call: Call


@dataclass(frozen=True, kw_only=True)
class NextEvent:
    pass


@dataclass(frozen=True, kw_only=True)
class Pause:
    """`attempt` counts from 1; `at_least` seconds is what the server asked for."""

    attempt: int
    at_least: float | None = None


@dataclass(frozen=True)
class Emit(Generic[T]):
    value: T


Effect: TypeAlias = Call | Open | NextEvent | Pause
Flow: TypeAlias = Generator[Effect, Any, T]
StreamFlow: TypeAlias = Generator[Effect | Emit[T], Any, None]
