"""`python -m server.app` with one more route: what the engine says of itself, and the process's id. For benchmarks alone.

python -m benchmarks.serving.observed_server        by the KMSERVE_* settings
"""

from __future__ import annotations

import os
from typing import Any

import uvicorn
from fastapi import FastAPI

from server import observability
from server.app import GRACE_SECONDS, create_app
from server.settings import load_settings

STATS_PATH = "/benchmark/stats"


def observed(app: FastAPI) -> FastAPI:
    @app.get(STATS_PATH, include_in_schema=False)
    async def stats() -> dict[str, Any]:
        return {"pid": os.getpid(), "engine": app.state.parts.models.get().engine.stats()}

    return app


def main() -> None:
    settings = load_settings()
    observability.configure(settings)
    uvicorn.run(
        observed(create_app(settings)),
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )


if __name__ == "__main__":
    main()
