"""The real server: a uvicorn process of its own with published modules, asked over HTTP by the product's client."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.serving.figures import Trace
from benchmarks.serving.shelf import Shelf
from benchmarks.serving.workload import Job
from server.cli_stack import Stack, isolated
from server.cli_up import wait_ready
from server.engine.base_model import PreparedBase

HOST_BYTES = 4 << 30
SERVER = ("-m", "benchmarks.serving.observed_server")


class Served:
    """Answers end where the model ends them: a trace tells how many tokens there were. `close` stops the process."""

    name = "kmserve-http"

    def __init__(self, prepared: PreparedBase, shelf: Shelf, folder: Path, *, device: str, dtype: str, threads: int, batch: int) -> None:
        """Raises StackError if the server does not come up."""
        from kmserve_client.client import Client

        from benchmarks.serving.publishing import PublishedExtractor, publish_modules

        folder.mkdir(parents=True)
        settings, environ = isolated(
            folder / "data",
            base_model=str(prepared.directory),
            device=device,
            dtype=dtype,
            engine_threads=threads,
            max_batch_size=batch,
            shipped_extractor="off",
            module_slots=max(16, batch),
            module_host_bytes=HOST_BYTES,
            log_level="warning",
        )
        self.stack = Stack(settings, environ, log_dir=folder, api=SERVER)
        try:
            self.stack.start_api()
            with Client(self.stack.url) as client:
                wait_ready(self.stack, client.ready)
            self.key = self.stack.key_file.read_text().strip()
            with Client(self.stack.url, self.key, timeout=120.0) as client:
                self.documents = publish_modules(settings, client, shelf.modules)
            self._extractor = PublishedExtractor(settings, shelf.extractor, prepared.fingerprint)
        except BaseException:
            self.stack.stop()
            raise

    def run(self, jobs: Sequence[Job]) -> list[Trace]:
        """All jobs at once. Raises StackError when the server has died."""
        self.stack.check()
        self._extractor.activate(any(job.extractor for job in jobs))
        return asyncio.run(self._every(jobs))

    def close(self) -> None:
        self._extractor.close()
        self.stack.stop()

    def options(self, job: Job) -> dict[str, Any]:
        """How a job is asked for."""
        if job.module is None:
            return {"mode": "base", "max_tokens": job.new_tokens}
        return {"mode": "closed_book", "document_id": self.documents[job.module], "max_tokens": job.new_tokens}

    def _check(self, job: Job, used: Any) -> None:
        """Raises RuntimeError where the server wears something else than the job: its figure would be of another scenario."""
        document = None if used.km is None else used.km.document_id
        wanted = None if job.module is None else self.documents[job.module]
        if document != wanted or (used.ke is not None) != job.extractor:
            raise RuntimeError(f"the server answered with module of {document} and extractor {used.ke}, not as asked")

    async def _every(self, jobs: Sequence[Job]) -> list[Trace]:
        from kmserve_client.aio import AsyncClient

        async with AsyncClient(self.stack.url, self.key, timeout=600.0) as client:
            await client.ready()  # the connection is there before the clock starts
            return list(await asyncio.gather(*(self._ask(client, job) for job in jobs)))

    async def _ask(self, client: Any, job: Job) -> Trace:
        from kmserve_client.models import Answer, Delta, Started

        submitted, pieces, tokens = time.perf_counter(), [], 0
        async for event in client.ask_stream(job.question, **self.options(job)):
            if isinstance(event, Delta):
                pieces.append(time.perf_counter())
            elif isinstance(event, Answer):
                tokens = event.usage.completion_tokens
            elif isinstance(event, Started):
                self._check(job, event.used)
        return Trace(submitted=submitted, finished=time.perf_counter(), pieces=tuple(pieces), tokens=tokens)
