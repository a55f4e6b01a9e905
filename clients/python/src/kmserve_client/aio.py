"""The async client: `client.py` with awaits. What the operations are is written in `operations.py`."""

from __future__ import annotations

import functools
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any, Concatenate, ParamSpec, TypeVar

import anyio
import httpx2

from kmserve_client import extractors as extracting
from kmserve_client import operations, streams
from kmserve_client.connection import DEFAULT_URL, Endpoint, connection_failed, reply_of
from kmserve_client.effects import Call, Effect, Emit, Flow, NextEvent, Open, Pause, Reply, StreamFlow
from kmserve_client.retries import Retries

P = ParamSpec("P")
T = TypeVar("T")


def awaitable(operation: Callable[P, Flow[T]]) -> Callable[Concatenate[AsyncClient, P], Awaitable[T]]:
    @functools.wraps(operation)
    async def method(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._run(operation(*args, **kwargs))

    return method


def iterating(operation: Callable[P, StreamFlow[T]]) -> Callable[Concatenate[AsyncClient, P], AsyncGenerator[T, None]]:
    @functools.wraps(operation)
    def method(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> AsyncGenerator[T, None]:
        return self._iterate(operation(*args, **kwargs))

    return method


class AsyncClient:
    """Use as an async context manager. Repeats what is safe to repeat, like `Client`."""

    def __init__(
        self,
        url: str = DEFAULT_URL,
        api_key: str | None = None,
        *,
        timeout: float = 120.0,
        retries: Retries | None = None,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        self._endpoint = Endpoint(url=url, api_key=api_key, timeout=timeout, retries=retries or Retries())
        self._http = httpx2.AsyncClient(**self._endpoint.client_options(), transport=transport)

    upload = awaitable(operations.upload)
    document = awaitable(operations.document)
    documents = iterating(operations.documents)
    wait = awaitable(operations.wait)
    events = iterating(streams.events)
    cancel = awaitable(operations.cancel)
    retry = awaitable(operations.retry)
    train = awaitable(operations.train)
    delete = awaitable(operations.delete)
    job = awaitable(operations.job)
    wait_for_job = awaitable(operations.wait_for_job)
    cancel_job = awaitable(operations.cancel_job)
    train_extractor = awaitable(extracting.train_extractor)
    extractors = awaitable(extracting.extractors)
    extractor = awaitable(extracting.extractor)
    activate_extractor = awaitable(extracting.activate_extractor)
    deactivate_extractor = awaitable(extracting.deactivate_extractor)
    delete_extractor = awaitable(extracting.delete_extractor)
    ask = awaitable(operations.ask)
    ask_stream = iterating(streams.ask_stream)
    search = awaitable(operations.search)
    create_api_key = awaitable(operations.create_api_key)
    api_keys = awaitable(operations.api_keys)
    delete_api_key = awaitable(operations.delete_api_key)
    ready = awaitable(operations.ready)

    async def aclose(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    async def _run(self, flow: Flow[T]) -> T:
        async with _Exchange(self._http, self._endpoint) as exchange:
            outcome: Any = None
            while True:
                try:
                    effect = flow.send(outcome)
                except StopIteration as done:
                    result: T = done.value
                    return result
                outcome = await exchange.perform(effect)

    async def _iterate(self, flow: StreamFlow[T]) -> AsyncGenerator[T, None]:
        async with _Exchange(self._http, self._endpoint) as exchange:
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
                    outcome = await exchange.perform(effect)


class _Exchange:
    """The connection state of one operation: at most one open event stream."""

    def __init__(self, http: httpx2.AsyncClient, endpoint: Endpoint) -> None:
        self._http = http
        self._endpoint = endpoint
        self._stream = AsyncExitStack()
        self._events: AsyncIterator[httpx2.ServerSentEvent] | None = None

    async def __aenter__(self) -> _Exchange:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._stream.aclose()

    async def perform(self, effect: Effect) -> object:
        if isinstance(effect, Pause):
            return await self._pause(effect)
        try:
            match effect:
                case Call():
                    return await self._call(effect)
                case Open():
                    return await self._open(effect.call)
                case NextEvent():
                    assert self._events is not None
                    return await anext(self._events, None)
        except httpx2.TransportError as error:
            return connection_failed(error, self._endpoint.url)

    async def _pause(self, pause: Pause) -> bool:
        delay = self._endpoint.retries.delay(pause)
        if delay is not None:
            await anyio.sleep(delay)
        return delay is not None

    async def _call(self, call: Call) -> Reply:
        with self._endpoint.request(self._http, call) as request:
            response = await self._http.send(request)
        return reply_of(response, response.content)

    async def _open(self, call: Call) -> Reply:
        await self._stream.aclose()
        with self._endpoint.request(self._http, call) as request:
            response = await self._http.send(request, stream=True)
        self._stream.push_async_callback(response.aclose)
        if response.status_code >= 400:
            return reply_of(response, await response.aread())
        self._events = aiter(httpx2.EventSource(response))
        return reply_of(response, b"")
