"""The application: its factory, its lifespan, and the only place where parts are wired together.

    python -m server.app        serves it, by the KMSERVE_* settings

Migrations, locks and keys come before the first request; the base model is prepared and loaded behind it, and until then whatever needs
it is answered 503 `starting`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from server import observability, startup
from server.api_keys.keys import KeyMaker
from server.api_keys.routes import router as api_keys
from server.asks.prompting import Prompter
from server.asks.routes import router as asks
from server.background import keep_house
from server.body_limit import BodyLimit
from server.db.blobs import BlobStore
from server.db.migrate import upgrade
from server.db.session import Database
from server.documents.routes import router as documents
from server.engine.base_model import BaseModel, load_base, prepare_base
from server.engine.cores import ENGINE, CoreShare
from server.engine.embedded import EmbeddedEngine
from server.engine.options import EngineOptions
from server.errors import KmserveError, Unavailable
from server.health.routes import router as health
from server.health.service import Doctor
from server.jobs.bell import Bell
from server.jobs.ingest_loop import IngestLoop
from server.jobs.routes import router as jobs
from server.modules.store import ModuleStore
from server.parts import Loading, Models, Parts, Tasks
from server.problems import Guard, Problem, install
from server.retrieval.embedding import Embedder
from server.retrieval.index import VectorIndex
from server.retrieval.ingest import Ingestor, Limits
from server.retrieval.passages import token_counter
from server.settings import Settings, load_settings
from server.transactions import writing

logger = logging.getLogger(__name__)

VERSION = "0.1.0"
GRACE_SECONDS = 10
"""For answers and event streams under way when the server is told to stop."""
_TITLE = "kmserve"
_ABOUT = (
    "Ask your private documents: upload one, its knowledge module is trained, and every question is answered by one shared base model "
    "with that document's module plugged in. Every error is an RFC 9457 problem document; its `code` is explained in docs/errors.md."
)


def create_app(settings: Settings, parts: Parts | None = None) -> FastAPI:
    """The whole API. `parts` replaces what the lifespan would make, in tests."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with _given(parts) if parts is not None else running(settings) as ready:
            app.state.parts = ready
            app.state.doctor = Doctor()
            yield

    app = FastAPI(title=_TITLE, version=VERSION, description=_ABOUT, lifespan=lifespan, redirect_slashes=False)
    for router in (documents, asks, jobs, api_keys, health):
        app.include_router(router)
    install(app)
    for layer in (BodyLimit, Guard, observability.AccessLog, observability.with_request_id):
        app.add_middleware(layer)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[Parts]:
    """All parts at work, and all of them stopped at the end."""
    startup.make_root(settings.root)
    with startup.sole_api_process(settings):
        secret = startup.secret_of(settings)
        await asyncio.to_thread(upgrade, settings.sql_url)
        database, bell, background = Database(settings.sql_url), Bell(settings), Tasks()
        parts = Parts(
            settings=settings,
            database=database,
            blobs=BlobStore(settings.root / "blobs"),
            modules=ModuleStore(settings.root / "modules"),
            keys=KeyMaker(secret),
            models=Loading(),
            ring=bell.ring,
        )
        try:
            await writing(database, startup.ensure_admin_key, parts.keys, settings.root)
            background.start(_models(parts))
            background.start(keep_house(parts, sole_owner=settings.qdrant_url is None))
            yield parts
        finally:
            await background.cancel()
            await parts.tasks.finish()
            await asyncio.to_thread(bell.close)
            await database.close()


async def _models(parts: Parts) -> None:
    """Prepare and load what answers, then ingest until the end. What goes wrong on the way is what readiness says from then on."""
    try:
        base, embedder = await asyncio.to_thread(_load, parts.settings, parts.models.progress)
    except Exception as error:
        logger.exception("the models cannot be loaded")
        parts.models.fail(
            error if isinstance(error, KmserveError) else Unavailable("the models cannot be loaded; the server's log says why")
        )
        return
    await _serve(parts, base, embedder)


def _load(settings: Settings, progress: Callable[[str, int, int], None]) -> tuple[BaseModel, Embedder]:
    prepared = prepare_base(settings.base_model, settings.root / "models", progress)
    progress("loading", 0, 2)
    base = load_base(prepared, device=settings.device, dtype=settings.dtype)
    progress("loading", 1, 2)
    return base, Embedder(settings.embedder, threads=settings.engine_threads)


async def _serve(parts: Parts, base: BaseModel, embedder: Embedder) -> None:
    settings = parts.settings
    index = _index(settings, embedder)
    engine: EmbeddedEngine | None = None
    try:
        await index.open()
        options = _engine_options(settings)
        engine = await asyncio.to_thread(EmbeddedEngine, base, options=options)
        engine.start()
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
        parts.models.ready(models)
        logger.info("ready: %s on %s in %s", base.name, base.device, base.dtype)
        await ingest.run()
    except KmserveError as error:
        logger.error("cannot serve: %s", error.detail)
        parts.models.fail(error)
    finally:
        if engine is not None:
            await engine.drain(grace=GRACE_SECONDS)
        await index.close()


def _index(settings: Settings, embedder: Embedder) -> VectorIndex:
    key = None if settings.qdrant_api_key is None else settings.qdrant_api_key.get_secret_value()
    path = settings.root / "qdrant" if settings.qdrant_url is None else None
    return VectorIndex(model=embedder.name, dimension=embedder.dimension, path=path, url=settings.qdrant_url, api_key=key)


def _engine_options(settings: Settings) -> EngineOptions:
    return EngineOptions(
        slots=settings.module_slots,
        host_bytes=settings.module_host_bytes,
        max_rank=settings.max_rank,
        max_batch=settings.max_batch_size,
        max_queue=settings.max_queue,
        threads=settings.engine_threads,
        cores=CoreShare(settings.root / "cores", ENGINE) if settings.engine_threads is None else None,
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


@asynccontextmanager
async def _given(parts: Parts) -> AsyncIterator[Parts]:
    yield parts
    await parts.tasks.finish()


def _openapi(app: FastAPI) -> dict[str, Any]:
    """The schema, with the problem document that all refusals refer to."""
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        schema["components"]["schemas"]["Problem"] = Problem.model_json_schema()
        app.openapi_schema = schema
    return app.openapi_schema


def main() -> None:
    settings = load_settings()
    observability.configure(settings)
    uvicorn.run(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )


if __name__ == "__main__":
    main()
