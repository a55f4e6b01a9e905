"""One way to call the blocking and the async client, so that a test of the client runs against both."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from kmserve_client.aio import AsyncClient
from kmserve_client.client import Client
from kmserve_client.retries import Retries

from tests.support.scripted_api import ScriptedApi

AT_ONCE = Retries(attempts=3, base=0.0, longest=5.0)


class Caller:
    """`call` runs an operation by name, `collect` an iterating one to its end (or its first `limit` values)."""

    def __init__(self, *, is_async: bool) -> None:
        self.is_async = is_async

    def call(self, api: ScriptedApi, operation: str, *args: Any, **kwargs: Any) -> Any:
        if not self.is_async:
            with Client("http://server", "kms_a_b", retries=AT_ONCE, transport=api.transport) as client:
                return getattr(client, operation)(*args, **kwargs)

        async def run() -> Any:
            async with AsyncClient("http://server", "kms_a_b", retries=AT_ONCE, transport=api.transport) as client:
                return await getattr(client, operation)(*args, **kwargs)

        return asyncio.run(run())

    def collect(self, api: ScriptedApi, operation: str, *args: Any, limit: int = 100, **kwargs: Any) -> list[Any]:
        values: list[Any] = []
        self.collect_into(values, api, operation, *args, limit=limit, **kwargs)
        return values

    def collect_into(self, values: list[Any], api: ScriptedApi, operation: str, *args: Any, limit: int = 100, **kwargs: Any) -> None:
        if not self.is_async:
            with Client("http://server", "kms_a_b", retries=AT_ONCE, transport=api.transport) as client:
                stream = getattr(client, operation)(*args, **kwargs)
                for value in stream:
                    values.append(value)
                    if len(values) == limit:
                        break
                stream.close()
            return

        async def run() -> None:
            async with AsyncClient("http://server", "kms_a_b", retries=AT_ONCE, transport=api.transport) as client:
                stream: AsyncIterator[Any] = getattr(client, operation)(*args, **kwargs)
                async for value in stream:
                    values.append(value)
                    if len(values) == limit:
                        break
                await stream.aclose()  # type: ignore[attr-defined]

        asyncio.run(run())
