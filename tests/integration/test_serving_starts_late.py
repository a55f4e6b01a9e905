"""The models' start while a service is missing: the server waits for it, says so, and loads nothing twice."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from server import serving
from server.api_keys.keys import KeyMaker
from server.db.blobs import BlobStore
from server.db.migrate import upgrade
from server.db.session import Database
from server.engine.base_model import BaseModel
from server.errors import Starting
from server.modules.store import ModuleStore
from server.parts import Loading, Models, Parts
from server.settings import Settings
from tests.support.base_files import save
from tests.support.embeddings import FakeEmbedder
from tests.support.fakes import Counter
from tests.support.qdrant_server import API_KEY, qdrant_server
from tests.support.servers import free_port


def parts_of(settings: Settings) -> Parts:
    upgrade(settings.sql_url)
    return Parts(
        settings=settings,
        database=Database(settings.sql_url),
        blobs=BlobStore(settings.root / "blobs"),
        modules=ModuleStore(settings.root / "modules"),
        keys=KeyMaker(b"secret"),
        models=Loading(),
        ring=Counter(),
    )


async def starting(models: Loading[Models], code: str) -> Starting:
    while True:
        try:
            models.get()
        except Starting as error:
            if error.extra.get("failure", {}).get("code") == code:
                return error
        await asyncio.sleep(0.05)


@pytest.mark.filterwarnings("ignore:Api key is used with an insecure connection")
async def test_a_qdrant_server_that_starts_later_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bases: list[BaseModel] = []
    load = serving._base

    def counted(*arguments: Any) -> BaseModel:
        bases.append(load(*arguments))
        return bases[-1]

    monkeypatch.setattr(serving, "Embedder", lambda *_, **__: FakeEmbedder())
    monkeypatch.setattr(serving, "_base", counted)
    port = free_port()
    settings = Settings(
        data_dir=tmp_path / "data",
        base_model=str(save(tmp_path / "base")),
        device="cpu",
        dtype="float32",
        qdrant_url=f"http://127.0.0.1:{port}",
        qdrant_api_key=SecretStr(API_KEY),
    )
    settings.root.mkdir()
    parts = parts_of(settings)
    service = asyncio.create_task(serving.serve(parts))
    try:
        async with asyncio.timeout(300):
            waiting = await starting(parts.models, "index_unavailable")
            assert "it is tried again in" in waiting.detail or "it is being tried again" in waiting.detail
            with qdrant_server(port):
                while parts.models.peek() is None:
                    assert not service.done()
                    await asyncio.sleep(0.05)
                assert await parts.models.get().index.count("acme", "doc_1") == 0
        assert len(bases) == 1
    finally:
        service.cancel()
        await asyncio.gather(service, return_exceptions=True)
        await parts.database.close()
