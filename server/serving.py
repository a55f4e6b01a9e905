"""The parts that answer, loaded and wired behind the first requests: base model, engine, embedding model, vector index, ingest loop.

Imported by the lifespan on a thread, for the libraries of models take seconds to import, and nothing else needs them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, closing
from functools import partial
from typing import Final

from server.asks.prompting import Prompter
from server.collector import keep_what_is_here
from server.engine.apart import apart
from server.engine.base_model import BaseModel, load_base, prepare_base
from server.engine.cores import ENGINE, CoreShare
from server.engine.embedded import EmbeddedEngine
from server.engine.options import EngineOptions
from server.extractors.shipped import install
from server.jobs.ingest_loop import IngestLoop
from server.loading import until_it_works
from server.modules.cached_store import CachedStore
from server.modules.fetching import below_reader, disk_reader
from server.modules.store import ModuleStore
from server.parts import Models, Parts
from server.retrieval.embedding import Embedder
from server.retrieval.index import VectorIndex
from server.retrieval.ingest import Ingestor, Limits
from server.retrieval.passages import token_counter
from server.settings import Settings

logger = logging.getLogger(__name__)

GRACE_SECONDS: Final = 10.0
"""For answers in flight when the server stops; uvicorn has waited for their connections before."""


async def serve(parts: Parts) -> None:
    """Load, answer and ingest until cancelled. Each step is tried again until it works; raises the KmserveError of one that never will."""
    settings = parts.settings
    load = partial(until_it_works, loading=parts.models)
    async with AsyncExitStack() as stack:
        cores = stack.enter_context(closing(core_share(settings)))
        base = await load(partial(asyncio.to_thread, apart, _base, settings, parts.models.progress))
        await load(partial(asyncio.to_thread, install, settings, parts.modules, base.fingerprint))
        embedder = await load(partial(asyncio.to_thread, Embedder, settings.embedder, cores=cores))
        index = await load(lambda: stack.enter_async_context(_index(settings, embedder)))
        options = engine_options(settings, cores)
        engine = await load(lambda: stack.enter_async_context(_engine(base, options, parts.modules)))
        ingest = _ingest_loop(parts, base, embedder, index)
        models = Models(
            engine=engine,
            prompter=Prompter(base.tokenizer, min(base.context_limit, options.kv_tokens)),
            base_name=base.name,
            base_fingerprint=base.fingerprint,
            embedding=embedder,
            index=index,
            notify_ingest=ingest.notify,
        )
        keep_what_is_here()
        parts.models.ready(models)
        logger.info("ready: %s on %s in %s", base.name, base.device, base.dtype)
        await ingest.run()


def core_share(settings: Settings) -> CoreShare:
    threads = {"engine_threads": settings.engine_threads, "trainer_threads": settings.trainer_threads}
    return CoreShare(settings.root / "cores", ENGINE, **threads)


def _base(settings: Settings, progress: Callable[[str, int, int], None]) -> BaseModel:
    prepared = prepare_base(settings.base_model, settings.root / "models", progress)
    progress("loading", 0, 2)
    base = load_base(prepared, device=settings.device, dtype=settings.dtype)
    progress("loading", 1, 2)
    return base


@asynccontextmanager
async def _index(settings: Settings, embedder: Embedder) -> AsyncIterator[VectorIndex]:
    key = None if settings.qdrant_api_key is None else settings.qdrant_api_key.get_secret_value()
    path = settings.root / "qdrant" if settings.qdrant_url is None else None
    index = VectorIndex(model=embedder.name, dimension=embedder.dimension, path=path, url=settings.qdrant_url, api_key=key)
    try:
        await index.open()
        yield index
    finally:
        await index.close()


@asynccontextmanager
async def _engine(base: BaseModel, options: EngineOptions, store: ModuleStore) -> AsyncIterator[EmbeddedEngine]:
    below = below_reader(store) if isinstance(store, CachedStore) else None
    engine = await asyncio.to_thread(EmbeddedEngine, base, options=options, read=disk_reader(store), below=below)
    engine.start()
    try:
        yield engine
    finally:
        await engine.drain(GRACE_SECONDS)


def engine_options(settings: Settings, cores: CoreShare) -> EngineOptions:
    return EngineOptions(
        slots=settings.module_slots,
        host_bytes=settings.module_host_bytes,
        max_rank=settings.max_rank,
        max_batch=settings.max_batch_size,
        max_queue=settings.max_queue,
        kv_tokens=settings.kv_cache_tokens,
        prefix_tokens=settings.prefix_cache_tokens,
        step_tokens=settings.step_tokens,
        attention=settings.attention,
        cores=cores,
    )


def _ingest_loop(parts: Parts, base: BaseModel, embedder: Embedder, index: VectorIndex) -> IngestLoop:
    settings = parts.settings
    limits = Limits(
        parse_seconds=settings.parse_seconds,
        parse_memory_bytes=settings.parse_memory_bytes,
        max_characters=settings.max_document_characters,
        passage_tokens=settings.passage_tokens,
    )
    return IngestLoop(
        database=parts.database,
        blobs=parts.blobs,
        ingestor=Ingestor(index=index, embedder=embedder, count_base=token_counter(base.tokenizer), limits=limits),
        ring=parts.ring,
        lease_seconds=settings.lease_seconds,
        max_attempts=settings.max_attempts,
    )
