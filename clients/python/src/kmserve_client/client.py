"""The blocking client: answers an operation's effects one by one. What the operations are is written in `operations.py`."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from typing import Any, Concatenate, ParamSpec, TypeVar

import httpx2

from kmserve_client import extractors as extracting
from kmserve_client import operations, streams
from kmserve_client.connection import DEFAULT_URL, Endpoint, connection_failed, reply_of
from kmserve_client.effects import Call, Effect, Emit, Flow, NextEvent, Open, Pause, Reply, StreamFlow
from kmserve_client.retries import Retries

P = ParamSpec("P")
T = TypeVar("T")


def blocking(operation: Callable[P, Flow[T]]) -> Callable[Concatenate[Client, P], T]:
    @functools.wraps(operation)
    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._run(operation(*args, **kwargs))

    return method


def iterating(operation: Callable[P, StreamFlow[T]]) -> Callable[Concatenate[Client, P], Generator[T, None, None]]:
    @functools.wraps(operation)
    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> Generator[T, None, None]:
        return self._iterate(operation(*args, **kwargs))

    return method


class Client:
    """Use as a context manager. Calls that are safe to repeat are repeated on 429, 503 and lost connections (see `Retries`)."""

    def __init__(
        self,
        url: str = DEFAULT_URL,
        api_key: str | None = None,
        *,
        timeout: float = 120.0,
        retries: Retries | None = None,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        self._endpoint = Endpoint(url=url, api_key=api_key, timeout=timeout, retries=retries or Retries())
        self._http = httpx2.Client(**self._endpoint.client_options(), transport=transport)

    upload = blocking(operations.upload)
    document = blocking(operations.document)
    documents = iterating(operations.documents)
    wait = blocking(operations.wait)
    events = iterating(streams.events)
    cancel = blocking(operations.cancel)
    retry = blocking(operations.retry)
    train = blocking(operations.train)
    delete = blocking(operations.delete)
    job = blocking(operations.job)
    wait_for_job = blocking(operations.wait_for_job)
    cancel_job = blocking(operations.cancel_job)
    train_extractor = blocking(extracting.train_extractor)
    extractors = blocking(extracting.extractors)
    extractor = blocking(extracting.extractor)
    activate_extractor = blocking(extracting.activate_extractor)
    deactivate_extractor = blocking(extracting.deactivate_extractor)
    delete_extractor = blocking(extracting.delete_extractor)
    ask = blocking(operations.ask)
    ask_stream = iterating(streams.ask_stream)
    search = blocking(operations.search)
    create_api_key = blocking(operations.create_api_key)
    api_keys = blocking(operations.api_keys)
    delete_api_key = blocking(operations.delete_api_key)
    ready = blocking(operations.ready)

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _run(self, flow: Flow[T]) -> T:
        with _Exchange(self._http, self._endpoint) as exchange:
            outcome: Any = None
            while True:
                try:
                    effect = flow.send(outcome)
                except StopIteration as done:
                    result: T = done.value
                    return result
                outcome = exchange.perform(effect)

    def _iterate(self, flow: StreamFlow[T]) -> Generator[T, None, None]:
        with _Exchange(self._http, self._endpoint) as exchange:
            outcome: Any = None
            while True:
                try:
                    effect = flow.send(outcome)
                except StopIteration:
                    return
                if isinstance(effect, Emit):
                    yield effect.value
                    outcome = None
                else:
                    outcome = exchange.perform(effect)


class _Exchange:
    """The connection state of one operation: at most one open event stream."""

    def __init__(self, http: httpx2.Client, endpoint: Endpoint) -> None:
        self._http = http
        self._endpoint = endpoint
        self._stream = ExitStack()
        self._events: Iterator[httpx2.ServerSentEvent] = iter(())

    def __enter__(self) -> _Exchange:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stream.close()

    def perform(self, effect: Effect) -> object:
        if isinstance(effect, Pause):
            return self._pause(effect)
        try:
            match effect:
                case Call():
                    return self._call(effect)
                case Open():
                    return self._open(effect.call)
                case NextEvent():
                    return next(self._events, None)
        except httpx2.TransportError as error:
            return connection_failed(error, self._endpoint.url)

    def _pause(self, pause: Pause) -> bool:
        delay = self._endpoint.retries.delay(pause)
        if delay is not None:
            time.sleep(delay)
        return delay is not None

    def _call(self, call: Call) -> Reply:
        with self._endpoint.request(self._http, call) as request:
            response = self._http.send(request)
        return reply_of(response, response.content)

    def _open(self, call: Call) -> Reply:
        self._stream.close()
        with self._endpoint.request(self._http, call) as request:
            response = self._http.send(request, stream=True)
        self._stream.callback(response.close)
        if response.status_code >= 400:
            return reply_of(response, response.read())
        self._events = iter(httpx2.EventSource(response))
        return reply_of(response, b"")
