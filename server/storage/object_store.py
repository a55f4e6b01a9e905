"""Objects in S3, Google Cloud Storage, Azure or a directory, through obstore; and the modules' store over what the settings name.

Regions, endpoints and credentials come from the environment variables that each cloud's own tools read, and from
KMSERVE_OBJECT_STORE_OPTIONS.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import BaseError
from obstore.store import ObjectStore, from_url

from server.errors import ObjectStoreUnavailable, ObjectStoreUnusable
from server.modules.cached_store import CachedStore
from server.modules.objects import Objects
from server.modules.store import ModuleStore
from server.settings import Settings

logger = logging.getLogger(__name__)

SCHEMES: Final = ("s3", "gs", "az", "file")
_CLIENT: Final = frozenset(
    {
        "allow_http",
        "allow_invalid_certificates",
        "connect_timeout",
        "proxy_ca_certificate",
        "proxy_excludes",
        "proxy_url",
        "read_timeout",
        "root_certificate",
        "timeout",
        "user_agent",
    }
)
"""Options of the HTTP client; obstore takes all others for the store's own."""
_PATIENCE: Final = {"connect_timeout": "5s", "timeout": "60s"}
_RETRIES: Final = {
    "max_retries": 3,
    "retry_timeout": timedelta(seconds=30),
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=2), "base": 2},
}
_PARTS: Final = 4
"""Of a large file, 5 MiB each, sent at the same time."""


class StoredObjects:
    """Implements `Objects` over any store of obstore's."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def put(self, key: str, file: Path) -> None:
        file.stat()  # one that is gone is no fault of the store's
        with _explained():
            obstore.put(self._store, key, file, max_concurrency=_PARTS)

    def get(self, key: str, file: Path) -> None:
        with _explained(absent=FileNotFoundError(key)):
            chunks = iter(obstore.get(self._store, key).stream())
        with file.open("xb") as written:
            while True:
                with _explained():
                    chunk = next(chunks, None)
                if chunk is None:
                    return
                written.write(chunk)

    def list(self, folder: str) -> list[str]:
        with _explained():
            return [found["path"] for page in obstore.list(self._store, prefix=folder) for found in page]

    def delete(self, key: str) -> None:
        with suppress(FileNotFoundError), _explained(absent=FileNotFoundError(key)):
            obstore.delete(self._store, key)


def open_modules(settings: Settings) -> ModuleStore:
    """The modules' store: the data directory alone, or as a cache of the object store. Raises ObjectStoreUnusable; asks nothing of it."""
    root = settings.root / "modules"
    if settings.object_store is None:
        return ModuleStore(root)
    objects = open_objects(settings.object_store, _options(settings))
    return CachedStore(root, objects, settings.disk_cache_bytes, settings.object_store)


def open_objects(url: str, options: dict[str, Any]) -> Objects:
    """Raises ObjectStoreUnusable."""
    scheme = urlsplit(url).scheme
    if scheme not in SCHEMES:
        raise ObjectStoreUnusable(
            f"KMSERVE_OBJECT_STORE is no object store's URL; it begins with {', '.join(f'{each}://' for each in SCHEMES)}"
        )
    try:
        return StoredObjects(_opened(url, scheme, options))
    except (BaseError, ValueError, TypeError) as error:
        said = str(error).partition("\n")[0]
        raise ObjectStoreUnusable(f"KMSERVE_OBJECT_STORE or its options cannot be used: {said}") from error


def _opened(url: str, scheme: str, options: dict[str, Any]) -> ObjectStore:
    if scheme == "file":
        if options:
            raise ValueError("a directory has no options")
        return from_url(url, mkdir=True)
    client = _PATIENCE | {name: value for name, value in options.items() if name in _CLIENT}
    own = {name: value for name, value in options.items() if name not in _CLIENT}
    return from_url(url, config=own, client_options=client, retry_config=_RETRIES)  # type: ignore[call-overload, no-any-return]


def _options(settings: Settings) -> dict[str, Any]:
    text = "{}" if settings.object_store_options is None else settings.object_store_options.get_secret_value()
    try:
        options = json.loads(text)
    except ValueError:
        options = None
    if not isinstance(options, dict):
        raise ObjectStoreUnusable("KMSERVE_OBJECT_STORE_OPTIONS is no JSON object")
    return options


@contextmanager
def _explained(absent: FileNotFoundError | None = None) -> Iterator[None]:
    """What obstore raises, as ours. What is not there is `absent`; without it, only the bucket can be what is not there."""
    try:
        yield
    except (BaseError, OSError) as error:
        if absent is not None and isinstance(error, FileNotFoundError):
            raise absent from error
        logger.warning("the object store failed: %s", str(error).partition("\n")[0])
        raise ObjectStoreUnavailable("the object store cannot be used; the server's log says why") from error
