"""`python -m server.app` with one more route: the engine's numbers, what loads waited for, the process's id. For benchmarks alone.

python -m benchmarks.serving.observed_server        by the KMSERVE_* settings
"""

from __future__ import annotations

import os
from typing import Any

import uvicorn
from fastapi import FastAPI

from benchmarks.serving.load_profile import LoadProfile
from server import observability
from server.app import GRACE_SECONDS, create_app
from server.settings import load_settings

STATS_PATH = "/benchmark/stats"


def observed(app: FastAPI, profile: LoadProfile) -> FastAPI:
    @app.get(STATS_PATH, include_in_schema=False)
    async def stats() -> dict[str, Any]:
        return {"pid": os.getpid(), "engine": app.state.parts.models.get().engine.stats(), "loads": profile.sums()}

    return app


def main() -> None:
    settings = load_settings()
    observability.configure(settings)
    with LoadProfile().watching() as profile:
        uvicorn.run(
            observed(create_app(settings), profile),
            host=settings.host,
            port=settings.port,
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=GRACE_SECONDS,
        )


if __name__ == "__main__":
    main()
