"""`/health`: alive without anything, ready only when each part has done a little of what it is for."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from server.errors import BaseModelNotFound, EngineStopped, IndexUnavailable, TooManyRequests
from server.health import service
from server.health.service import Doctor
from server.parts import Loading
from tests.support.api import Api, client_of


async def readiness(api: Api) -> tuple[int, dict[str, Any]]:
    api.app.state.doctor = Doctor()
    response = await client_of(api.app, None).get("/health/ready")
    return response.status_code, response.json()


async def test_it_is_alive_without_a_key(api: Api) -> None:
    assert (await client_of(api.app, None).get("/health/live")).json() == {"status": "alive"}


async def test_it_is_ready_when_every_part_works(api: Api) -> None:
    status, body = await readiness(api)
    assert (status, body["status"]) == (200, "ready")
    assert {name: part["ok"] for name, part in body["parts"].items()} == {"database": True, "index": True, "engine": True, "broker": True}
    assert len(api.engine.scored) == 1


async def test_it_is_starting_until_the_models_are_loaded(api: Api) -> None:
    loading: Loading[Any] = Loading()
    loading.progress("converting", 40, 272)
    object.__setattr__(api.parts, "models", loading)
    status, body = await readiness(api)
    assert (status, body["code"], body["stage"], body["done"], body["total"]) == (503, "starting", "converting", 40, 272)
    assert body["parts"]["database"] == {"ok": True, "required": True}
    assert body["parts"]["engine"]["code"] == "starting"
    asked = await api.client.post("/ask", json={"question": "?", "mode": "base"})
    assert (asked.status_code, asked.json()["code"], asked.headers["retry-after"]) == (503, "starting", "2")


async def test_a_load_that_is_tried_again_is_what_readiness_says(api: Api) -> None:
    loading: Loading[Any] = Loading()
    loading.failed("index_unavailable", "the vector index does not answer", retry_in=8)
    object.__setattr__(api.parts, "models", loading)
    status, body = await readiness(api)
    assert (status, body["code"], body["failure"]["code"], body["failure"]["attempts"]) == (503, "starting", "index_unavailable", 1)
    assert "does not answer; it is tried again in" in body["parts"]["index"]["detail"]
    asked = await api.client.post("/ask", json={"question": "?", "mode": "base"})
    assert int(asked.headers["retry-after"]) in (7, 8)


async def test_models_that_cannot_be_loaded_are_what_readiness_says(api: Api) -> None:
    loading: Loading[Any] = Loading()
    loading.fail(BaseModelNotFound("KMSERVE_BASE_MODEL names nothing"))
    object.__setattr__(api.parts, "models", loading)
    status, body = await readiness(api)
    assert (status, body["code"], body["detail"]) == (503, "base_model_not_found", "KMSERVE_BASE_MODEL names nothing")


async def test_an_index_out_of_reach_is_not_ready(api: Api) -> None:
    api.index_fake.error = IndexUnavailable("the vector index does not answer")
    status, body = await readiness(api)
    assert (status, body["code"], body["parts"]["index"]["ok"], body["parts"]["engine"]["ok"]) == (503, "index_unavailable", False, True)


async def test_a_stopped_engine_is_not_ready_and_a_busy_one_is(api: Api) -> None:
    api.engine.error = EngineStopped("stopped")
    assert (await readiness(api))[1]["code"] == "engine_stopped"
    api.engine.error = TooManyRequests("full")
    assert (await readiness(api))[0] == 200


async def test_an_engine_that_hangs_is_not_ready(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    async def hang(*_: Any) -> Any:
        await asyncio.Event().wait()

    monkeypatch.setattr(service, "_PATIENCE_SECONDS", 0.1)
    monkeypatch.setattr(api.engine, "score", hang)
    status, body = await readiness(api)
    assert (status, body["code"], body["parts"]["engine"]["ok"]) == (503, "unavailable", False)


async def test_a_database_out_of_reach_is_not_ready(api: Api) -> None:
    file = Path(api.parts.settings.sql_url.removeprefix("sqlite:///"))
    await api.parts.database.close()
    _put_a_directory_in_place_of(file)
    status, body = await readiness(api)
    assert (status, body["code"]) == (503, "database_unavailable")
    refused = await api.client.get("/documents")
    assert (refused.status_code, refused.json()["code"]) == (503, "database_unavailable")
    assert file.name not in refused.text


def _put_a_directory_in_place_of(file: Path) -> None:
    file.rename(file.with_name("elsewhere.db"))
    file.mkdir()


async def test_a_broker_out_of_reach_is_shown_and_no_obstacle(api: Api) -> None:
    settings = api.parts.settings.model_copy(update={"broker_url": "redis://:password@127.0.0.1:1/0"})
    object.__setattr__(api.parts, "settings", settings)
    status, body = await readiness(api)
    assert (status, body["parts"]["broker"]["ok"], body["parts"]["broker"]["required"]) == (200, False, False)
    assert "password" not in str(body)


async def test_it_is_examined_once_in_a_while_only(api: Api) -> None:
    await readiness(api)
    for _ in range(3):
        await client_of(api.app, None).get("/health/ready")
    assert len(api.engine.scored) == 1
