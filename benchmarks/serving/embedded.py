"""The engine in this process: rounds of jobs as streams, each piece with its time."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from benchmarks.serving.figures import Trace
from benchmarks.serving.shelf import Shelf
from benchmarks.serving.workload import Job
from server.engine.base_model import BaseModel
from server.engine.embedded import EmbeddedEngine
from server.engine.options import EngineOptions
from server.engine.prompt import Prompt
from server.engine.request import ArtefactRef, EngineRequest, Sampling

T = TypeVar("T")
TENANT = "benchmark"


class Embedded:
    """An `EmbeddedEngine` that generates exactly as many tokens as it is asked for: no token ends an answer."""

    name = "kmserve"

    def __init__(self, base: BaseModel, options: EngineOptions, shelf: Shelf | None = None) -> None:
        self.options = options
        self._shelf = shelf
        self._engine = EmbeddedEngine(replace(base, eos_ids=frozenset()), options=options)
        self._engine.start()

    def run(self, jobs: Sequence[Job]) -> list[Trace]:
        """All jobs at once."""
        return self._gathered([self._job(job) for job in jobs])

    def answer(self, requests: Sequence[EngineRequest], together: int) -> list[Trace]:
        """The requests in their order, `together` of them at a time."""
        limit = asyncio.Semaphore(together)

        async def one(request: EngineRequest) -> Trace:
            async with limit:
                return await self._stream(request)

        return self._gathered([one(request) for request in requests])

    def prefetch(self, refs: Sequence[ArtefactRef], patience: float = 600.0) -> None:
        """Into host memory, and back when all of them have been read. Raises TimeoutError."""
        deadline = time.monotonic() + patience
        wanted = self.stats()["host_loads"] + len(set(refs))
        for ref in set(refs):
            self._engine.prefetch(ref)
        while self.stats()["host_loads"] < wanted:
            if time.monotonic() > deadline:
                raise TimeoutError("the modules did not reach the host's memory")
            time.sleep(0.01)

    def stats(self) -> dict[str, float]:
        return self._engine.stats()

    def close(self) -> None:
        """The model is as it was."""
        asyncio.run(self._engine.drain())

    def _gathered(self, streams: Sequence[Coroutine[Any, Any, Trace]]) -> list[Trace]:
        async def every() -> list[Trace]:
            return list(await asyncio.gather(*streams))

        return asyncio.run(every())

    async def _job(self, job: Job) -> Trace:
        assert self._shelf is not None or (job.module is None and not job.extractor)
        module = self._shelf.modules[job.module] if self._shelf and job.module is not None else None
        extractor = self._shelf.extractor if self._shelf and job.extractor else None
        return await self._stream(request_of(job.prompt, module, extractor, job.new_tokens))

    async def _stream(self, request: EngineRequest) -> Trace:
        submitted = time.perf_counter()
        pieces, tokens = [], 0
        async for delta in self._engine.submit(request):
            pieces.append(time.perf_counter())
            tokens = max(tokens, delta.completion_tokens)
        return Trace(submitted=submitted, finished=time.perf_counter(), pieces=tuple(pieces), tokens=tokens)


def request_of(
    prompt: Prompt, module: ArtefactRef | None, extractor: ArtefactRef | None, new_tokens: int, tenant: str = TENANT
) -> EngineRequest:
    return EngineRequest(
        request_id=uuid.uuid4().hex,
        tenant=tenant,
        prompt=prompt,
        module=module,
        extractor=extractor,
        sampling=Sampling(max_tokens=new_tokens),
    )
