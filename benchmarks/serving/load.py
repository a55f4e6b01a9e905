"""A crowd of streaming clients against the real server, many of whom leave in the middle; whether it is as before afterwards."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx2
from kmserve_client.aio import AsyncClient
from kmserve_client.errors import ApiError, ConnectionFailed
from kmserve_client.models import Answer, Delta
from kmserve_client.retries import Retries

from benchmarks.serving.observed_server import STATS_PATH
from benchmarks.serving.served import Served
from benchmarks.serving.shelf import make_shelf
from benchmarks.serving.systems import Workshop
from benchmarks.serving.workload import Job, jobs, question_source

LEAVERS = 0.3
LONGEST_STAY = 4.0
"""Seconds after which the last of those who leave has left."""
NEW_TOKENS = 32
CALM_SECONDS = 60.0
_PAUSE_SECONDS = 0.2
_PREPARED = 512
AT_REST = ("waiting", "running", "kv_tokens_reserved", "kv_tokens_active")
"""Of the engine's figures, those that are 0 when nobody asks; it does not have to tell all of them."""


def measure_load(workshop: Workshop, told: Callable[[str], object]) -> dict[str, Any]:
    """Raises StackError if the server dies of it."""
    base, size = workshop.plain(), workshop.size
    told("load: starting the server")
    shelf = make_shelf(base, workshop.folder / "load" / "shelf", size.most_modules)
    source = question_source(base.tokenizer)
    asked = jobs(base.tokenizer, "km+ke", len(shelf.modules), _PREPARED, source, NEW_TOKENS)
    prepared, folder = workshop.bases.prepared, workshop.folder / "load" / "server"
    options = {"device": workshop.bases.device, "dtype": workshop.dtype}
    with closing(Served(prepared, shelf, folder, threads=workshop.threads, batch=size.batch, **options)) as served:
        served.run(asked[: size.batch])
        before = observed(served)
        told(f"load: {size.load_clients} clients for {size.load_seconds:.0f} s")
        counts = asyncio.run(crowd(served, asked, size.load_clients, size.load_seconds))
        told("load: waiting for calm")
        after = _calm(served)
    return {
        "clients": size.load_clients,
        "seconds": size.load_seconds,
        "leavers": LEAVERS,
        **outcome(counts),
        "memory": {"start": before["memory"], "end": after["memory"]},
        "at_rest": {name: after["engine"][name] for name in AT_REST if name in after["engine"]},
        "engine": after["engine"],
    }


def outcome(counts: Counter[str]) -> dict[str, Any]:
    """`accepted` answers began; each of those was completed, left by its client, or failed. Others left before theirs began."""
    ended = {name: counts[name] for name in ("completed", "left", "failed", "left_waiting")}
    other = {name: count for name, count in sorted(counts.items()) if name.isdecimal() and name not in ("200", "429")}
    return {"accepted": counts["200"], "refused_429": counts["429"], "other": other, "unreachable": counts["unreachable"], **ended}


async def crowd(served: Served, asked: list[Job], clients: int, seconds: float) -> Counter[str]:
    """Each client asks one question after the other until the time is over; who is refused waits as long as it is told."""
    counts: Counter[str] = Counter()
    until = time.monotonic() + seconds

    async def one(number: int) -> None:
        draw = random.Random(number)
        async with AsyncClient(served.stack.url, served.key, timeout=600.0, retries=Retries(attempts=1)) as client:
            while time.monotonic() < until:
                await _ask(client, served, draw, asked[draw.randrange(len(asked))], counts)

    await asyncio.gather(*(one(number) for number in range(clients)))
    return counts


async def _ask(client: AsyncClient, served: Served, draw: random.Random, job: Job, counts: Counter[str]) -> None:
    stay = draw.uniform(0.0, LONGEST_STAY) if draw.random() < LEAVERS else None
    begun = False
    try:
        async with asyncio.timeout(stay):
            async for event in client.ask_stream(job.question, **served.options(job)):
                counts["200"] += not begun
                begun = True
                if isinstance(event, Delta | Answer):
                    counts["completed"] += isinstance(event, Answer)
    except TimeoutError:
        counts["left" if begun else "left_waiting"] += 1
    except ApiError as error:
        counts["failed" if begun else str(error.status)] += 1
        await asyncio.sleep(draw.uniform(0.5, 1.5))
    except ConnectionFailed:
        counts["failed" if begun else "unreachable"] += 1
        await asyncio.sleep(1.0)


def observed(served: Served) -> dict[str, Any]:
    answer = httpx2.get(f"{served.stack.url}{STATS_PATH}", timeout=30.0).json()
    return {"engine": answer["engine"], "loads": answer["loads"], "memory": memory(int(answer["pid"]))}


def memory(pid: int) -> dict[str, int | None]:
    """Bytes of a process: resident, and its share where pages are shared; None where the system does not tell."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return {"rss": None, "pss": None}
    found = {line.split(":")[0].lower(): int(line.split()[1]) * 1024 for line in lines if line.startswith(("Rss:", "Pss:"))}
    return {"rss": found.get("rss"), "pss": found.get("pss")}


def _calm(served: Served) -> dict[str, Any]:
    """The server once its engine is at rest, or after a minute as it is then."""
    deadline = time.monotonic() + CALM_SECONDS
    seen = observed(served)
    while any(seen["engine"].get(name) for name in AT_REST) and time.monotonic() < deadline:
        served.stack.check()
        time.sleep(_PAUSE_SECONDS)
        seen = observed(served)
    return seen
