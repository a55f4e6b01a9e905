"""How much of a module's load from the disk retrieval hides, in the real server: one cold module after the other, asked open book.

The engine tells the seconds that loads took and those that requests waited for them; the difference went by while the question was
embedded, searched for and put into a prompt. `steps` says what the loads themselves waited for, in means over the modules.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import closing
from typing import Any

from benchmarks.serving.figures import rounded, spread
from benchmarks.serving.load import observed
from benchmarks.serving.load_profile import Sums, mean_of, moved
from benchmarks.serving.served import Served
from benchmarks.serving.shelf import make_shelf
from benchmarks.serving.systems import Workshop
from benchmarks.serving.tiers import forget_pages

WARM = 2
"""Documents asked first, so that embedding and search are not cold themselves."""
WANTED = 0.8
_COUNTS = ("host_loads", "host_load_seconds", "load_wait_seconds")
_QUESTION = "What does document {number} of the benchmark say of its module?"


def measure_prefetch(workshop: Workshop, told: Callable[[str], object]) -> dict[str, Any]:
    base, size = workshop.plain(), workshop.size
    told("prefetch: starting the server")
    shelf = make_shelf(base, workshop.folder / "prefetch" / "shelf", max(WARM + 8, size.most_modules))
    folder, options = workshop.folder / "prefetch" / "server", {"device": workshop.bases.device, "dtype": workshop.dtype}
    with closing(Served(workshop.bases.prepared, shelf, folder, threads=workshop.threads, batch=len(shelf.modules), **options)) as served:
        asked = [_ask(served, number, told) for number in range(len(served.documents))][WARM:]
    loads, waits, steps = zip(*asked, strict=True)
    return {
        "modules": len(asked),
        "load": spread(loads),
        "waited": spread(waits),
        "hidden": rounded(1 - sum(waits) / sum(loads)),
        "wanted": WANTED,
        "steps": mean_of(steps),
    }


def _ask(served: Served, number: int, told: Callable[[str], object]) -> tuple[float, float, Sums]:
    """Seconds of the load of a document's module, those that its question waited for it, and what the load waited for."""
    told(f"prefetch: document {number + 1} of {len(served.documents)}")
    document = served.documents[number]
    for directory in (served.stack.settings.root / "modules").glob(f"tenants/*/documents/{document}/*"):
        forget_pages(directory)
    before = observed(served)
    asyncio.run(_stream(served, _QUESTION.format(number=number), document))
    after = observed(served)
    loads, seconds, waited = (after["engine"][name] - before["engine"][name] for name in _COUNTS)
    if loads != 1:
        raise RuntimeError("the module was not read once, as a cold one is")
    return seconds, waited, moved(before["loads"], after["loads"])


async def _stream(served: Served, question: str, document: str) -> None:
    from kmserve_client.aio import AsyncClient

    async with AsyncClient(served.stack.url, served.key, timeout=600.0) as client:
        async for _ in client.ask_stream(question, mode="open_book", document_id=document, max_tokens=2):
            pass
