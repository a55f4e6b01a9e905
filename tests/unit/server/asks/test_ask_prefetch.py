"""`POST /ask`: adapters are read from the disk while passages are retrieved and the prompt is built, not after.

Loader and retrieval wait for each other here: were one to begin only when the other has ended, neither would.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest

from server.asks.prompting import Prompter
from server.engine.host_cache import AdapterKey, HostAdapter, HostCache
from server.engine.request import ArtefactRef
from server.retrieval.types import Hit
from tests.support import rows
from tests.support.api import ACME, OPEN_BOOK, Api
from tests.support.asking import ask, ready, refused

EXTRACTOR = "a" * 64
PATIENCE_SECONDS = 10
Meet = Callable[[int], Barrier]


@pytest.fixture
def meet(api: Api, monkeypatch: pytest.MonkeyPatch) -> Iterator[Meet]:
    """From then on each load waits, until as many parties as are named have come to the barrier."""
    caches: list[HostCache] = []

    def prepare(parties: int) -> Barrier:
        barrier = Barrier(parties)

        def load(ref: ArtefactRef) -> HostAdapter:
            barrier.wait(PATIENCE_SECONDS)
            return HostAdapter(key=AdapterKey.of(ref), scope=ref.scope, scaling=1.0, tensors=(), w_km=None, w_ke=None, nbytes=1)

        caches.append(HostCache(load, 10))
        monkeypatch.setattr(api.engine, "prefetch", caches[-1].prefetch)
        return barrier

    yield prepare
    for cache in caches:
        cache.close()


def at_the_search(api: Api, monkeypatch: pytest.MonkeyPatch, barrier: Barrier) -> None:
    search = api.index_fake.search

    async def met(*arguments: Any) -> list[Hit]:
        await asyncio.to_thread(barrier.wait, PATIENCE_SECONDS)
        return await search(*arguments)

    monkeypatch.setattr(api.index_fake, "search", met)


def at_the_prompt(monkeypatch: pytest.MonkeyPatch, barrier: Barrier) -> None:
    fit = Prompter.fit

    def met(*arguments: Any, **named: Any) -> Any:
        barrier.wait(PATIENCE_SECONDS)
        return fit(*arguments, **named)

    monkeypatch.setattr(Prompter, "fit", met)


async def test_module_and_extractor_of_one_document_load_during_retrieval(api: Api, meet: Meet, monkeypatch: pytest.MonkeyPatch) -> None:
    document, _, digest = await ready(api)
    await api.sql(lambda session: rows.extractor(session, "system", EXTRACTOR))
    at_the_search(api, monkeypatch, meet(3))
    used = (await ask(api, document_id=document, mode="open_book"))["used"]
    assert (used["km"]["digest"], used["ke"]) == (digest, EXTRACTOR)


async def test_closed_book_loads_both_while_the_prompt_is_built(api: Api, meet: Meet, monkeypatch: pytest.MonkeyPatch) -> None:
    document, _, _ = await ready(api)
    await api.sql(lambda session: rows.extractor(session, "system", EXTRACTOR))
    at_the_prompt(monkeypatch, meet(3))
    assert (await ask(api, document_id=document, mode="closed_book"))["used"]["ke"] == EXTRACTOR


async def test_those_of_the_leading_document_load_while_the_prompt_is_built(api: Api, meet: Meet, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, digest = await ready(api, gate=OPEN_BOOK)
    await api.sql(lambda session: rows.extractor(session, "system", EXTRACTOR))
    at_the_prompt(monkeypatch, meet(3))
    used = (await ask(api))["used"]
    assert (used["mode"], used["km"]["digest"], used["ke"]) == ("open_book", digest, EXTRACTOR)


async def test_retrieval_from_all_documents_loads_the_extractor_meanwhile(api: Api, meet: Meet, monkeypatch: pytest.MonkeyPatch) -> None:
    await ready(api)
    await api.sql(lambda session: rows.extractor(session, "system", EXTRACTOR))
    at_the_search(api, monkeypatch, meet(2))
    assert (await ask(api, mode="retrieval"))["used"]["ke"] == EXTRACTOR


async def test_only_what_is_worn_is_loaded_ahead(api: Api) -> None:
    document, _, digest = await ready(api)
    await api.sql(lambda session: rows.extractor(session, "system", EXTRACTOR))
    for mode in ("base", "in_context"):
        await ask(api, document_id=document, mode=mode)
    assert api.engine.prefetched == []
    await ask(api, document_id=document, mode="open_book")
    module, extractor = api.engine.prefetched
    [request] = api.engine.requests[-1:]
    assert (module, extractor) == (request.module, request.extractor)
    assert module.directory == api.parts.modules.path(ACME, document, digest)
    assert isinstance(extractor.directory, Path)


async def test_a_module_whose_extractor_is_not_there_is_refused_before_anything_is_loaded(api: Api) -> None:
    document, _, _ = await ready(api, wears="b" * 64)
    assert (await refused(api, document_id=document, mode="open_book"))[1] == "extractor_unavailable"
    assert api.engine.prefetched == []
