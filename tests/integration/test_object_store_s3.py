"""The object store over the real S3 protocol: what one machine publishes answers on another, and what happens when the store goes away."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer
from pydantic import SecretStr

from server.engine.base_model import BaseModel
from server.engine.batch_engine import BatchEngine
from server.engine.options import EngineOptions
from server.engine.request import ArtefactRef
from server.errors import KmserveError, ModuleUnreadable, ObjectStoreUnavailable
from server.modules.artefact import Artefact, write_artefact
from server.modules.cached_store import CachedStore
from server.modules.fetching import below_reader, disk_reader
from server.settings import Settings
from server.storage.object_store import open_modules, open_objects
from tests.support.engines import answer, finish, spoken, start
from tests.support.oracle import Oracle
from tests.support.servers import free_port
from tests.support.tiny_models import tiny_artefact, tiny_base, tiny_prompt, tiny_request

BUCKET = "modules"
LARGE = 12 * 1024 * 1024
Open = Callable[[str], CachedStore]


@contextmanager
def s3(port: int) -> Iterator[str]:
    """The server's URL. Its objects stay in this process's memory when it stops."""
    server = ThreadedMotoServer("127.0.0.1", port, verbose=False)
    server.start()
    url = f"http://127.0.0.1:{port}"
    try:
        urllib.request.urlopen(urllib.request.Request(f"{url}/{BUCKET}", method="PUT"), timeout=10).close()
        yield url
    finally:
        server.stop()


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def machine(tmp_path: Path, port: int) -> Open:
    """The store of modules of a machine with a data directory of its own, by name."""

    def opened(name: str) -> CachedStore:
        options = SecretStr(json.dumps(_options(port)))
        settings = Settings(data_dir=tmp_path / name, object_store=f"s3://{BUCKET}/{tmp_path.name}", object_store_options=options)
        store = open_modules(settings)
        assert isinstance(store, CachedStore)
        return store

    return opened


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return tiny_base()


@pytest.fixture(scope="module")
def oracle() -> Oracle:
    """Over the same weights."""
    return Oracle(tiny_base())


def _options(port: int) -> dict[str, object]:
    keys = {"aws_access_key_id": "key", "aws_secret_access_key": "secret", "region": "us-east-1"}
    return {**keys, "endpoint": f"http://127.0.0.1:{port}", "allow_http": True, "timeout": "10s"}


def published(store: CachedStore, document: str, artefact: Artefact) -> ArtefactRef:
    """As a worker does."""
    staged = store.staging("t1", document)
    ref = write_artefact(staged, a=artefact.a, b=artefact.b, manifest=artefact.manifest, base_model_name="tiny")
    place = store.path("t1", document, ref.digest)
    store.upload(staged, place)
    store.publish(staged, "t1", document, ref.digest)
    return replace(ref, directory=place)


def seen_by(store: CachedStore, document: str, ref: ArtefactRef) -> ArtefactRef:
    return replace(ref, directory=store.path("t1", document, ref.digest))


def test_bytes_come_back_large_ones_in_parts(port: int, tmp_path: Path) -> None:
    sent, received = tmp_path / "sent", tmp_path / "received"
    sent.write_bytes(bytes(range(256)) * (LARGE // 256))
    with s3(port):
        objects = open_objects(f"s3://{BUCKET}/large", _options(port))
        objects.put("a/b", sent)
        objects.get("a/b", received)
        assert objects.list("a") == ["a/b"]
        with pytest.raises(FileNotFoundError):
            objects.get("a/c", tmp_path / "absent")
        objects.delete("a/b")
        objects.delete("a/b")
        assert objects.list("a") == []
    assert received.read_bytes() == sent.read_bytes()


def test_a_bucket_that_is_not_there_is_a_store_out_of_reach(port: int, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with s3(port):
        objects = open_objects("s3://elsewhere/prefix", _options(port))
        for ask in (lambda: objects.list("a"), lambda: objects.put("a", tmp_path / "file")):
            with pytest.raises(ObjectStoreUnavailable):
                ask()


def test_one_machine_answers_with_what_another_published(port: int, machine: Open, base: BaseModel, oracle: Oracle) -> None:
    here, there = machine("here"), machine("there")
    artefact, prompt = tiny_artefact(base, 1), tiny_prompt(1)
    engine = BatchEngine(base, EngineOptions(), disk_reader(there), below=below_reader(there))
    with s3(port):
        ref = seen_by(there, "doc_1", published(here, "doc_1", artefact))
        told = answer(engine, tiny_request("fetched", prompt, ref))
    stats = engine.stats() | there.stats()
    engine.close()
    assert told.tokens == spoken(oracle, prompt, 8, artefact)
    assert (stats["host_found"], stats["host_absent"], stats["disk_loads"], stats["host_loads"]) == (0, 1, 1, 1)
    assert ref.directory.is_dir()


def test_a_store_that_goes_away_ends_those_who_need_it_alone(port: int, machine: Open, base: BaseModel, oracle: Oracle) -> None:
    here, there = machine("here"), machine("there")
    prompt = tiny_prompt(1)
    artefacts = [tiny_artefact(base, seed) for seed in range(2)]
    engine = BatchEngine(base, EngineOptions(), disk_reader(there), below=below_reader(there))
    with s3(port):
        refs = [seen_by(there, f"doc_{seed}", published(here, f"doc_{seed}", made)) for seed, made in enumerate(artefacts)]
        answer(engine, tiny_request("before", prompt, refs[0]))
    with pytest.raises(ObjectStoreUnavailable):
        there.delete_document("t1", "doc_9")
    lost = start(engine, tiny_request("lost", prompt, refs[1]))
    kept = start(engine, tiny_request("kept", prompt, refs[0]))
    bare = start(engine, tiny_request("bare", prompt))
    finish(engine)
    assert isinstance(lost.error, ModuleUnreadable)
    assert isinstance(lost.error, KmserveError)
    assert lost.error.code == "module_unreadable"
    assert kept.tokens == spoken(oracle, prompt, 8, artefacts[0])
    assert bare.tokens == spoken(oracle, prompt, 8)
    with s3(port):
        assert answer(engine, tiny_request("again", prompt, refs[1])).tokens == spoken(oracle, prompt, 8, artefacts[1])
        there.delete_document("t1", "doc_1")
        assert here.below("t1") == {here.path("t1", "doc_0", refs[0].digest)}
    engine.close()
