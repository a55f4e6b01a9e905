from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from server.errors import IndexMismatch, IndexUnavailable
from server.retrieval.index import VectorIndex, collection_name
from server.retrieval.types import Point
from tests.support.embeddings import FakeEmbedder

EMBEDDER = FakeEmbedder()


def points(*texts: str) -> list[Point]:
    return [Point(passage_id=str(uuid.uuid4()), vector=vector) for vector in EMBEDDER.encode(texts)]


def question(text: str) -> list[float]:
    return EMBEDDER.encode([text])[0]


def local(path: Path, **options: Any) -> VectorIndex:
    return VectorIndex(**{"model": EMBEDDER.name, "dimension": EMBEDDER.dimension, "path": path, **options})


@pytest.fixture
async def index(tmp_path: Path) -> AsyncIterator[VectorIndex]:
    index = local(tmp_path / "qdrant")
    await index.open()
    yield index
    await index.close()


async def test_the_nearest_passages_come_first(index: VectorIndex) -> None:
    near, far = points("thirty days of leave", "the office is in Lisbon")
    await index.upsert("acme", "doc_1", "rev_1", [far, near])
    hits = await index.search("acme", question("days of leave"), 5)
    assert [hit.passage_id for hit in hits] == [near.passage_id, far.passage_id]
    assert (hits[0].document_id, hits[0].revision_id) == ("doc_1", "rev_1")
    assert 1.0 >= hits[0].score > hits[1].score
    assert len(await index.search("acme", question("days of leave"), 1)) == 1


async def test_a_tenant_never_sees_anothers_passages(index: VectorIndex) -> None:
    await index.upsert("acme", "doc_1", "rev_1", points("the secret of acme"))
    await index.upsert("other", "doc_2", "rev_2", points("the secret of other"))
    vector = question("the secret of acme")
    assert {hit.document_id for hit in await index.search("other", vector, 10)} == {"doc_2"}
    assert await index.search("other", vector, 10, document_ids=["doc_1"]) == []
    assert await index.search("other", vector, 10, revision_ids=["rev_1"]) == []
    assert await index.search("nobody", vector, 10) == []


async def test_a_tenant_cannot_delete_anothers_passages(index: VectorIndex) -> None:
    await index.upsert("acme", "doc_1", "rev_1", points("words"))
    await index.delete_document("other", "doc_1")
    await index.delete_revision("other", "doc_1", "rev_1")
    assert await index.count("acme", "doc_1") == 1
    assert await index.count("other", "doc_1") == 0


async def test_search_within_documents_and_revisions(index: VectorIndex) -> None:
    for document, revision in (("doc_1", "rev_1"), ("doc_1", "rev_2"), ("doc_2", "rev_3")):
        await index.upsert("acme", document, revision, points("the same words"))
    vector = question("words")
    assert len(await index.search("acme", vector, 10)) == 3
    assert {hit.revision_id for hit in await index.search("acme", vector, 10, document_ids=["doc_1"])} == {"rev_1", "rev_2"}
    hits = await index.search("acme", vector, 10, document_ids=["doc_1", "doc_2"], revision_ids=["rev_2", "rev_3"])
    assert {hit.revision_id for hit in hits} == {"rev_2", "rev_3"}


async def test_no_documents_are_not_all_documents(index: VectorIndex) -> None:
    await index.upsert("acme", "doc_1", "rev_1", points("words"))
    assert await index.search("acme", question("words"), 10, document_ids=[]) == []
    assert await index.search("acme", question("words"), 10, revision_ids=()) == []


async def test_deleting_a_revision_leaves_the_others(index: VectorIndex) -> None:
    await index.upsert("acme", "doc_1", "rev_1", points("old words"))
    await index.upsert("acme", "doc_1", "rev_2", points("new words"))
    await index.delete_revision("acme", "doc_1", "rev_1")
    assert [hit.revision_id for hit in await index.search("acme", question("words"), 10)] == ["rev_2"]
    await index.delete_document("acme", "doc_1")
    assert await index.search("acme", question("words"), 10) == []
    await index.delete_document("acme", "doc_1")


async def test_the_same_point_again_replaces_it(index: VectorIndex) -> None:
    (point,) = points("words")
    await index.upsert("acme", "doc_1", "rev_1", [point])
    await index.upsert("acme", "doc_1", "rev_1", [Point(passage_id=point.passage_id, vector=question("other"))])
    (hit,) = await index.search("acme", question("other"), 10)
    assert hit.score == pytest.approx(1.0, abs=1e-5)


async def test_many_at_once_from_many_tasks(index: VectorIndex) -> None:
    await asyncio.gather(*(index.upsert("acme", f"doc_{n}", f"rev_{n}", points(*(f"word {n} {m}" for m in range(70)))) for n in range(3)))
    assert [await index.count("acme", f"doc_{n}") for n in range(3)] == [70, 70, 70]


async def test_a_vector_of_another_length(index: VectorIndex) -> None:
    with pytest.raises(IndexMismatch):
        await index.upsert("acme", "doc_1", "rev_1", [Point(passage_id=str(uuid.uuid4()), vector=[1.0])])
    with pytest.raises(IndexMismatch):
        await index.search("acme", [1.0], 1)


async def test_it_is_there_again_after_a_restart(tmp_path: Path) -> None:
    await _filled(tmp_path)
    again = local(tmp_path / "qdrant")
    await again.open()
    assert await again.count("acme", "doc_1") == 1
    await again.close()


async def test_another_model_is_refused_while_there_are_passages(tmp_path: Path) -> None:
    await _filled(tmp_path)
    with pytest.raises(IndexMismatch, match="fake-embedder"):
        await local(tmp_path / "qdrant", model="other-model").open()
    again = local(tmp_path / "qdrant")
    await again.open()
    await again.delete_document("acme", "doc_1")
    await again.close()
    other = local(tmp_path / "qdrant", model="other-model")
    await other.open()
    await other.close()


async def test_another_dimension_is_refused(tmp_path: Path) -> None:
    await _filled(tmp_path)
    with pytest.raises(IndexMismatch):
        await local(tmp_path / "qdrant", dimension=64).open()


async def test_a_refused_index_is_not_kept_open(tmp_path: Path) -> None:
    await _filled(tmp_path)
    refused = local(tmp_path / "qdrant", dimension=64)
    with pytest.raises(IndexMismatch):
        await refused.open()
    with pytest.raises(IndexUnavailable):
        await refused.count("acme", "doc_1")
    again = local(tmp_path / "qdrant")
    await again.open()
    await again.close()


async def test_a_directory_has_one_owner(index: VectorIndex, tmp_path: Path) -> None:
    with pytest.raises(IndexUnavailable) as caught:
        await local(tmp_path / "qdrant").open()
    assert str(tmp_path) not in caught.value.detail


async def test_nothing_is_written_after_a_cancelled_call(index: VectorIndex) -> None:
    many = points(*(f"word {number}" for number in range(200)))
    task = asyncio.create_task(index.upsert("acme", "doc_1", "rev_1", many))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    written = await index.count("acme", "doc_1")
    await asyncio.sleep(0.1)
    assert await index.count("acme", "doc_1") == written


def test_collection_names_are_legal_and_distinct() -> None:
    names = {collection_name(model) for model in ("a/b", "a:b", "ä" * 200, "all-minilm-l6-v2-0123")}
    assert len(names) == 4
    assert all(not set(name) & set('<>:"/\\|?*\0 ') and len(name) < 100 for name in names)


def test_somewhere_and_only_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="path or a URL"):
        VectorIndex(model="m", dimension=2)
    with pytest.raises(ValueError, match="path or a URL"):
        VectorIndex(model="m", dimension=2, path=tmp_path, url="http://127.0.0.1:6333")


async def _filled(tmp_path: Path) -> None:
    index = local(tmp_path / "qdrant")
    await index.open()
    await index.upsert("acme", "doc_1", "rev_1", points("words"))
    await index.close()
