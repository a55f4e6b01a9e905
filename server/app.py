"""The application: its factory, its lifespan, and the wiring of its parts.

    python -m server.app        serves it, by the KMSERVE_* settings

Migrations, locks and keys come before the first request; the models are loaded behind it (`serving.py`), and until then whatever needs
them is answered 503 `starting`.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from server import observability, startup
from server.api_keys.keys import KeyMaker
from server.api_keys.routes import router as api_keys
from server.asks.routes import router as asks
from server.background import keep_house
from server.body_limit import BodyLimit
from server.caching import keep_cache
from server.db.blobs import BlobStore
from server.db.migrate import upgrade
from server.db.session import Database
from server.documents.routes import router as documents
from server.errors import KmserveError, Unavailable
from server.extractors.routes import router as extractors
from server.health.routes import router as health
from server.health.service import Doctor
from server.jobs.bell import Bell
from server.jobs.routes import router as jobs
from server.metrics.http import HttpMetrics, MeasuredRequests
from server.metrics.routes import router as metrics
from server.metrics.service import Meter
from server.modules.cached_store import CachedStore
from server.parts import Loading, Parts, Tasks
from server.presence import sole_api_process
from server.problems import Guard, Problem, install
from server.residency.routes import router as residency
from server.settings import Settings, load_settings
from server.storage.object_store import open_modules
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
    for router in (documents, asks, extractors, residency, jobs, api_keys, health, metrics):
        app.include_router(router)
    install(app)
    for layer in (BodyLimit, Guard, observability.AccessLog):
        app.add_middleware(layer)
    requests = HttpMetrics()
    app.state.meter = Meter(requests)
    app.add_middleware(MeasuredRequests, metrics=requests)
    app.add_middleware(observability.with_request_id)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[Parts]:
    """All parts at work, and all of them stopped at the end."""
    startup.make_root(settings.root)
    with sole_api_process(settings):
        secret = startup.secret_of(settings)
        await asyncio.to_thread(upgrade, settings.sql_url)
        database, bell, background = Database(settings.sql_url), Bell(settings), Tasks()
        parts = Parts(
            settings=settings,
            database=database,
            blobs=BlobStore(settings.root / "blobs"),
            modules=open_modules(settings),
            keys=KeyMaker(secret),
            models=Loading(),
            ring=bell.ring,
        )
        try:
            await writing(database, startup.ensure_admin_key, parts.keys, settings.root)
            background.start(_models(parts))
            if isinstance(parts.modules, CachedStore):
                background.start(keep_cache(parts, parts.modules))
            background.start(keep_house(parts, sole_owner=settings.qdrant_url is None and settings.sql_url.startswith("sqlite")))
            yield parts
        finally:
            await background.cancel()
            await parts.tasks.finish()
            await asyncio.to_thread(bell.close)
            await database.close()


async def _models(parts: Parts) -> None:
    """Load what answers, then serve until the end. What goes wrong on the way is what readiness says from then on."""
    try:
        await asyncio.to_thread(importlib.import_module, "server.serving")
        from server.serving import serve  # its libraries take seconds to import, which the first requests need not wait for

        await serve(parts)
    except Exception as error:
        logger.exception("the models cannot be served")
        unknown = Unavailable("the models cannot be served; the server's log says why")
        parts.models.fail(error if isinstance(error, KmserveError) else unknown)


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
    listening = uvicorn.Config("", host=settings.host, port=settings.port, log_config=None).bind_socket()
    settings = settings.model_copy(update={"port": listening.getsockname()[1]})  # 0 asked for any
    config = uvicorn.Config(create_app(settings), log_config=None, access_log=False, timeout_graceful_shutdown=GRACE_SECONDS)
    uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    main()
