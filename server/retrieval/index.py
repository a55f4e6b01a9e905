"""The vector index: which passages are nearest to a question, within one tenant. Holds ids and vectors, never a passage's text.

Qdrant, in a directory (one process may have it open; exact search) or at a URL. One collection per embedding model. Every query and
deletion names its tenant. qdrant-client's calls run on threads of this index; a directory has just one, for local Qdrant is not
thread-safe. The directory holds pickles: it is for its owner alone (0700).
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import sqlite3
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, Final, TypeVar

from qdrant_client import QdrantClient, models
from qdrant_client.common.client_exceptions import QdrantException
from qdrant_client.http.exceptions import ApiException, UnexpectedResponse

from server.errors import IndexMismatch, IndexUnavailable, StorageFull
from server.retrieval.types import Hit, Point

Result = TypeVar("Result")

_PREFIX: Final = "kmserve-"
_BATCH: Final = 64
_REMOTE_THREADS: Final = 8
_TIMEOUT_SECONDS: Final = 30
_TENANT: Final = "tenant"
_DOCUMENT: Final = "document"
_REVISION: Final = "revision"
_EMPTY_LOG: Final = "PRAGMA wal_checkpoint(TRUNCATE)"
"""Pages go to the file, where the overwritten ones replace those with deleted rows."""


class VectorIndex:
    """`model` is the embedding model's name with its content hash, `dimension` the length of its vectors; `path` or `url` says where."""

    def __init__(self, *, model: str, dimension: int, path: Path | None = None, url: str | None = None, api_key: str | None = None) -> None:
        if (path is None) == (url is None):
            raise ValueError("an index has a path or a URL")
        self._model = model
        self._dimension = dimension
        self._path = path
        self._url = url
        self._api_key = api_key
        self._collection = collection_name(model)
        self._threads = ThreadPoolExecutor(1 if path is not None else _REMOTE_THREADS, thread_name_prefix="index")
        self._client: QdrantClient | None = None

    async def open(self) -> None:
        """Raises IndexMismatch for an index of another embedding model or dimension, IndexUnavailable when it cannot be opened."""
        await self._call(self._open)

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await self._call(client.close)
        self._threads.shutdown()

    async def upsert(self, tenant: str, document: str, revision: str, points: Sequence[Point]) -> None:
        """Add or replace points by their passage ids. Raises IndexMismatch for a vector of another length."""
        for start in range(0, len(points), _BATCH):
            await self._call(self._upsert, tenant, document, revision, points[start : start + _BATCH])

    async def search(
        self,
        tenant: str,
        vector: Sequence[float],
        k: int,
        document_ids: Sequence[str] | None = None,
        revision_ids: Sequence[str] | None = None,
    ) -> list[Hit]:
        """The `k` nearest passages of a tenant, best first; in these documents and revisions only (None: all; none named: no hits)."""
        if k < 1 or any(named is not None and not named for named in (document_ids, revision_ids)):
            return []
        within = _within(tenant, _any(_DOCUMENT, document_ids), _any(_REVISION, revision_ids))
        return await self._call(self._search, list(vector), k, within)

    async def count(self, tenant: str, document: str) -> int:
        """How many passages of a document are indexed."""
        return await self._call(self._count, _within(tenant, _any(_DOCUMENT, (document,))))

    async def delete_document(self, tenant: str, document: str) -> None:
        await self._call(self._delete, _within(tenant, _any(_DOCUMENT, (document,))))

    async def delete_revision(self, tenant: str, document: str, revision: str) -> None:
        await self._call(self._delete, _within(tenant, _any(_DOCUMENT, (document,)), _any(_REVISION, (revision,))))

    async def _call(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Run on a thread of the index. A cancelled call has ended by the time its caller goes on: nothing is written behind its back."""
        call = asyncio.get_running_loop().run_in_executor(self._threads, _translated, function, arguments)
        try:
            return await asyncio.shield(call)
        except asyncio.CancelledError:
            await asyncio.wait({call})
            raise

    def _open(self) -> None:
        self._client = self._connect()
        try:
            self._refuse_other_models()
            if not self._client.collection_exists(self._collection):
                self._create()
            self._check_dimension()
            if self._path is None:
                self._index_payload()
            else:
                self._overwrite_deleted(self._client)
                self._on_file(self._path, "PRAGMA journal_mode=WAL", _EMPTY_LOG)
        except BaseException:
            self._client.close()
            self._client = None
            raise

    def _connect(self) -> QdrantClient:
        if self._path is None:
            return QdrantClient(url=self._url, api_key=self._api_key, timeout=_TIMEOUT_SECONDS, check_compatibility=False)
        self._path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path.chmod(0o700)
        try:
            return QdrantClient(path=str(self._path))
        except RuntimeError as error:
            raise IndexUnavailable("another process has the vector index open; stop it, or set KMSERVE_QDRANT_URL to share one") from error

    def _refuse_other_models(self) -> None:
        """Documents indexed under another model would silently stop being found."""
        for collection in self._open_client.get_collections().collections:
            if collection.name.startswith(_PREFIX) and collection.name != self._collection and self._points_in(collection.name):
                raise IndexMismatch(
                    f"the vector index holds passages embedded with {self._model_of(collection.name)}, not with {self._model}; "
                    "set KMSERVE_EMBEDDER back, or delete that collection and upload the documents again"
                )

    def _create(self) -> None:
        """Two servers may start at once: whoever comes second finds the collection there."""
        client = self._open_client
        try:
            client.create_collection(
                self._collection,
                vectors_config=models.VectorParams(size=self._dimension, distance=models.Distance.COSINE),
                hnsw_config=models.HnswConfigDiff(m=0, payload_m=16),
                metadata={"model": self._model},
            )
        except (UnexpectedResponse, ValueError):
            if not client.collection_exists(self._collection):
                raise

    def _index_payload(self) -> None:
        """A server keeps each tenant's points together, and finds documents and revisions by index; repeating it changes nothing."""
        tenant = models.KeywordIndexParams(type=models.KeywordIndexType.KEYWORD, is_tenant=True)
        keyword = models.PayloadSchemaType.KEYWORD
        for field, schema in ((_TENANT, tenant), (_DOCUMENT, keyword), (_REVISION, keyword)):
            self._open_client.create_payload_index(self._collection, field, schema, wait=True)

    def _check_dimension(self) -> None:
        vectors = self._open_client.get_collection(self._collection).config.params.vectors
        size = vectors.size if isinstance(vectors, models.VectorParams) else None
        if size != self._dimension:
            raise IndexMismatch("the vector index was made for vectors of another length; set KMSERVE_EMBEDDER back to its model")

    def _model_of(self, collection: str) -> str:
        metadata = self._open_client.get_collection(collection).config.metadata or {}
        return str(metadata.get("model", "an unknown model"))

    def _points_in(self, collection: str) -> int:
        # tenant-free: whether another model's collection is in use; only the number is looked at
        return self._open_client.count(collection).count

    def _upsert(self, tenant: str, document: str, revision: str, points: Sequence[Point]) -> None:
        self._check_lengths(point.vector for point in points)
        payload = {_TENANT: tenant, _DOCUMENT: document, _REVISION: revision}
        structs = [models.PointStruct(id=point.passage_id, vector=point.vector, payload=dict(payload)) for point in points]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Local mode is not recommended")
            self._open_client.upsert(self._collection, structs, wait=True)

    def _search(self, vector: list[float], k: int, within: models.Filter) -> list[Hit]:
        self._check_lengths([vector])
        found = self._open_client.query_points(self._collection, query=vector, query_filter=within, limit=k, with_payload=True)
        return [_hit(point) for point in found.points]

    def _count(self, within: models.Filter) -> int:
        return self._open_client.count(self._collection, count_filter=within, exact=True).count

    def _delete(self, within: models.Filter) -> None:
        if self._count(within) == 0:
            return
        self._open_client.delete(self._collection, models.FilterSelector(filter=within), wait=True)
        if self._path is not None:
            self._on_file(self._path, _EMPTY_LOG)

    def _overwrite_deleted(self, client: QdrantClient) -> None:
        """SQLite may only mark deleted rows as free. Told to overwrite them, it need not rewrite the file for each deletion.

        The setting is one of the connection, which local Qdrant shows nobody.
        """
        local: Any = client._client
        local.collections[self._collection].storage.storage.execute("PRAGMA secure_delete=ON").fetchall()

    def _on_file(self, path: Path, *statements: str) -> None:
        """Local Qdrant keeps a collection in SQLite and commits every point by itself: a write-ahead log makes that bearable."""
        with closing(sqlite3.connect(path / "collection" / self._collection / "storage.sqlite")) as storage:
            for statement in statements:
                storage.execute(statement)

    def _check_lengths(self, vectors: Iterable[Sequence[float]]) -> None:
        if any(len(vector) != self._dimension for vector in vectors):
            raise IndexMismatch("the vector's length is not the index's; the embedding model was changed while the server ran")

    @property
    def _open_client(self) -> QdrantClient:
        if self._client is None:
            raise IndexUnavailable("the vector index is not open")
        return self._client


def collection_name(model: str) -> str:
    """A name that Qdrant takes: the model's, readable, with a hash of it for what had to be replaced."""
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", model)[:64]
    return f"{_PREFIX}{readable}-{hashlib.sha256(model.encode()).hexdigest()[:8]}"


def _translated(function: Callable[..., Result], arguments: Sequence[Any]) -> Result:
    try:
        return function(*arguments)
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_FULL:
            raise StorageFull("the disk of the vector index is full; make room and try again") from error
        raise IndexUnavailable("the files of the vector index cannot be used; look at the server's log") from error
    except (ApiException, QdrantException) as error:
        raise IndexUnavailable("the vector index does not answer as it should; check that it runs and that its API key is right") from error


def _within(tenant: str, *conditions: models.FieldCondition | None) -> models.Filter:
    mine = models.FieldCondition(key=_TENANT, match=models.MatchValue(value=tenant))
    return models.Filter(must=[mine, *(condition for condition in conditions if condition is not None)])


def _any(key: str, values: Sequence[str] | None) -> models.FieldCondition | None:
    return models.FieldCondition(key=key, match=models.MatchAny(any=list(values))) if values is not None else None


def _hit(point: models.ScoredPoint) -> Hit:
    payload = point.payload or {}
    return Hit(passage_id=str(point.id), document_id=payload[_DOCUMENT], revision_id=payload[_REVISION], score=point.score)
