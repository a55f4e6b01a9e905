"""The index over HTTP. Against a real server too, where QDRANT_TEST_URL (and QDRANT_TEST_KEY) name one that may be written to."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import AsyncIterator, Iterator

import pytest

from server.errors import IndexMismatch, IndexUnavailable
from server.retrieval.index import VectorIndex
from server.retrieval.types import Point
from tests.support.embeddings import FakeEmbedder
from tests.support.qdrant_server import API_KEY, QdrantServer, qdrant_server

EMBEDDER = FakeEmbedder()
pytestmark = pytest.mark.filterwarnings("ignore:Api key is used with an insecure connection")
REAL = os.environ.get("QDRANT_TEST_URL")


@pytest.fixture
def server() -> Iterator[QdrantServer]:
    with qdrant_server() as server:
        yield server


def remote(server: QdrantServer, model: str = EMBEDDER.name, dimension: int = EMBEDDER.dimension, key: str = API_KEY) -> VectorIndex:
    return VectorIndex(model=model, dimension=dimension, url=server.url, api_key=key)


def points(*texts: str) -> list[Point]:
    return [Point(passage_id=str(uuid.uuid4()), vector=vector) for vector in EMBEDDER.encode(texts)]


@pytest.fixture(params=["fake", "real"] if REAL else ["fake"])
async def index(request: pytest.FixtureRequest, server: QdrantServer) -> AsyncIterator[VectorIndex]:
    if request.param == "fake":
        index = remote(server)
    else:
        key = os.environ.get("QDRANT_TEST_KEY")
        index = VectorIndex(model=EMBEDDER.name, dimension=EMBEDDER.dimension, url=REAL, api_key=key)
    await index.open()
    yield index
    await index.close()


async def test_the_whole_life_of_a_document(index: VectorIndex) -> None:
    acme, other = f"acme-{uuid.uuid4().hex}", f"other-{uuid.uuid4().hex}"
    near, *rest = points("thirty days of leave", *(f"word {number}" for number in range(100)))
    await index.upsert(acme, "doc_1", "rev_1", [*rest, near])
    await index.upsert(other, "doc_2", "rev_2", points("thirty days of leave"))
    vector = EMBEDDER.encode(["days of leave"])[0]
    hits = await index.search(acme, vector, 3, document_ids=["doc_1", "doc_2"])
    assert hits[0].passage_id == near.passage_id
    assert {hit.document_id for hit in hits} == {"doc_1"}
    await index.upsert(acme, "doc_1", "rev_3", points("newer words"))
    await index.delete_revision(acme, "doc_1", "rev_1")
    assert [hit.revision_id for hit in await index.search(acme, vector, 5)] == ["rev_3"]
    await index.delete_document(acme, "doc_1")
    assert (await index.count(acme, "doc_1"), await index.count(other, "doc_2")) == (0, 1)
    await index.delete_document(other, "doc_2")


async def test_the_collection_is_laid_out_by_tenant(server: QdrantServer) -> None:
    index = remote(server)
    await index.open()
    await index.close()
    assert server.payload_indexes == {"tenant": {"type": "keyword", "is_tenant": True}, "document": "keyword", "revision": "keyword"}
    assert server.created[0]["hnsw_config"] == {"m": 0, "payload_m": 16}


async def test_replicas_that_start_at_once_share_the_collection(server: QdrantServer) -> None:
    replicas = [remote(server) for _ in range(4)]
    await asyncio.gather(*(replica.open() for replica in replicas))
    await replicas[0].upsert("acme", "doc_1", "rev_1", points("words"))
    assert [await replica.count("acme", "doc_1") for replica in replicas] == [1] * 4
    for replica in replicas:
        await replica.close()


async def test_another_model_or_dimension_is_refused(server: QdrantServer) -> None:
    index = remote(server)
    await index.open()
    await index.upsert("acme", "doc_1", "rev_1", points("words"))
    await index.close()
    with pytest.raises(IndexMismatch, match="fake-embedder"):
        await remote(server, model="another").open()
    with pytest.raises(IndexMismatch):
        await remote(server, dimension=64).open()


async def test_a_wrong_key(server: QdrantServer) -> None:
    with pytest.raises(IndexUnavailable, match="API key"):
        await remote(server, key="wrong").open()


async def test_a_server_that_went_away() -> None:
    with qdrant_server() as server:
        index = remote(server)
        await index.open()
    with pytest.raises(IndexUnavailable):
        await index.search("acme", [1.0] * EMBEDDER.dimension, 1)
    await index.close()
