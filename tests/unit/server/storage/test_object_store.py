"""Objects through obstore, over a directory and in memory; and what the settings may name."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
from obstore.store import LocalStore, MemoryStore
from pydantic import SecretStr

from server.errors import ObjectStoreUnavailable, ObjectStoreUnusable
from server.modules.cached_store import CachedStore
from server.modules.objects import Objects
from server.modules.store import ModuleStore
from server.settings import Settings
from server.storage.object_store import StoredObjects, open_modules, open_objects

LARGE = 12 * 1024 * 1024
AWS = {"aws_access_key_id": "key", "aws_secret_access_key": "secret", "region": "us-east-1", "allow_http": True}


@pytest.fixture(params=["memory", "directory"])
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> Objects:
    return StoredObjects(MemoryStore() if request.param == "memory" else LocalStore(tmp_path / "store", mkdir=True))


def put(objects: Objects, folder: Path, key: str, data: bytes) -> None:
    file = folder / "source"
    file.write_bytes(data)
    objects.put(key, file)


def got(objects: Objects, folder: Path, key: str) -> bytes:
    file = folder / "target"
    file.unlink(missing_ok=True)
    objects.get(key, file)
    return file.read_bytes()


@pytest.mark.parametrize("data", [b"", b"some", bytes(range(256)) * (LARGE // 256)], ids=["empty", "small", "large"])
def test_bytes_come_back(objects: Objects, tmp_path: Path, data: bytes) -> None:
    put(objects, tmp_path, "a/b/c", data)
    assert got(objects, tmp_path, "a/b/c") == data
    put(objects, tmp_path, "a/b/c", b"others")
    assert got(objects, tmp_path, "a/b/c") == b"others"


def test_an_object_that_is_not_there(objects: Objects, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        objects.get("a/b", tmp_path / "target")
    assert not (tmp_path / "target").exists()
    objects.delete("a/b")


def test_a_folder_holds_its_own_keys_alone(objects: Objects, tmp_path: Path) -> None:
    for key in ("a/b/c", "a/b/d/e", "a/bc/f"):
        put(objects, tmp_path, key, b"")
    assert sorted(objects.list("a/b")) == ["a/b/c", "a/b/d/e"]
    objects.delete("a/b/c")
    assert objects.list("a/b") == ["a/b/d/e"]
    assert objects.list("elsewhere") == []


def test_a_failing_disk_is_no_failing_object_store(objects: Objects, tmp_path: Path) -> None:
    put(objects, tmp_path, "a", b"x")
    with pytest.raises(FileNotFoundError):
        objects.get("a", tmp_path / "absent" / "target")
    with pytest.raises(FileExistsError):
        objects.get("a", tmp_path / "source")


def test_unset_is_the_directory_alone(tmp_path: Path) -> None:
    assert type(open_modules(Settings(data_dir=tmp_path))) is ModuleStore


def test_a_directory_by_url(tmp_path: Path) -> None:
    store = open_modules(Settings(data_dir=tmp_path, object_store=(tmp_path / "shared" / "store").as_uri()))
    assert isinstance(store, CachedStore)
    assert store.below("t1") == frozenset()
    assert (tmp_path / "shared" / "store").is_dir()


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("bogus", {}),
        ("ftp://host/path", {}),
        ("memory:///", {}),
        ("https://host/path", {}),
        ("s3:///", {}),
        ("s3://bucket", {"nonsense": "x"}),
        ("s3://bucket", {"timeout": "soon"}),
        ("file:///tmp/x", {"region": "x"}),
        ("az://container", {"account_key": "not base64"}),
    ],
)
def test_what_is_no_object_store_is_refused(url: str, options: dict[str, Any]) -> None:
    with pytest.raises(ObjectStoreUnusable, match="KMSERVE_OBJECT_STORE") as caught:
        open_objects(url, options)
    assert caught.value.code == "object_store_unusable"


@pytest.mark.parametrize("text", ["{", "[]", '"s3"'])
def test_options_are_a_json_object(tmp_path: Path, text: str) -> None:
    settings = Settings(data_dir=tmp_path, object_store="s3://bucket", object_store_options=SecretStr(text))
    with pytest.raises(ObjectStoreUnusable, match="KMSERVE_OBJECT_STORE_OPTIONS"):
        open_modules(settings)


def test_options_are_told_nowhere() -> None:
    settings = Settings(object_store="s3://bucket", object_store_options=SecretStr('{"aws_secret_access_key": "hush"}'))
    assert "hush" not in repr(settings)


@pytest.mark.parametrize("url", ["s3://bucket/prefix", "gs://bucket/prefix", "az://container/prefix"])
def test_every_cloud_has_its_url(url: str) -> None:
    """Opened, and nothing asked."""
    options = {"account_name": "me", "account_key": "a2V5"} if url.startswith("az") else {"timeout": "3s"}
    open_objects(url, options)


def test_a_store_out_of_reach(tmp_path: Path) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        objects = open_objects("s3://bucket/prefix", {**AWS, "endpoint": endpoint})
        (tmp_path / "file").touch()
        for ask in (lambda: objects.list("a"), lambda: objects.put("a", tmp_path / "file")):
            with pytest.raises(ObjectStoreUnavailable) as caught:
                ask()
            assert endpoint not in caught.value.detail


def test_a_store_that_does_not_answer(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        objects = open_objects("s3://bucket", {**AWS, "endpoint": f"http://127.0.0.1:{silent.getsockname()[1]}", "timeout": "200ms"})
        with pytest.raises(ObjectStoreUnavailable):
            objects.get("a", tmp_path / "target")
