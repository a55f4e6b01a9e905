from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from server.errors import BrokenDocument
from server.retrieval.index import VectorIndex
from server.retrieval.ingest import Ingestor, Limits, Source, Stage, passage_id
from tests.support.documents import pdf
from tests.support.embeddings import FakeEmbedder, count_words

EMBEDDER = FakeEmbedder()
LIMITS = Limits(parse_seconds=30, parse_memory_bytes=1024**3, max_characters=20_000, passage_tokens=20)
PROSE = " ".join(f"Rule {number} grants {number} days of leave." for number in range(100))


class Heard:
    """Writes down what is reported; stops the ingest at a stage if told."""

    def __init__(self, stop_at: Stage | None = None) -> None:
        self.stages: list[tuple[Stage, int, int]] = []
        self._stop_at = stop_at

    async def __call__(self, stage: Stage, done: int, total: int) -> None:
        self.stages.append((stage, done, total))
        if stage == self._stop_at:
            raise InterruptedError


@pytest.fixture
async def index(tmp_path: Path) -> AsyncIterator[VectorIndex]:
    index = VectorIndex(model=EMBEDDER.name, dimension=EMBEDDER.dimension, path=tmp_path / "qdrant")
    await index.open()
    yield index
    await index.close()


def ingestor(index: VectorIndex) -> Ingestor:
    return Ingestor(index=index, embedder=EMBEDDER, count_base=count_words, limits=LIMITS)


def source(tmp_path: Path, data: bytes, revision: str = "rev_1") -> Source:
    path = tmp_path / "blob"
    path.write_bytes(data)
    return Source(tenant_id="acme", document_id="doc_1", revision_id=revision, path=path, filename=None)


async def test_every_passage_can_be_found(tmp_path: Path, index: VectorIndex) -> None:
    heard = Heard()
    ingested = await ingestor(index).ingest(source(tmp_path, pdf([PROSE[:300], "Overtime is paid twice."])), heard)
    assert ingested.tokens == count_words(ingested.parsed.text)
    assert await index.count("acme", "doc_1") == len(ingested.passages)
    (hit,) = await index.search("acme", EMBEDDER.encode(["overtime paid twice"])[0], 1)
    assert ingested.passages[hit.passage_id].text == "Overtime is paid twice."
    assert ingested.passages[hit.passage_id].page == 2
    assert list(dict.fromkeys(stage for stage, _, _ in heard.stages)) == list(Stage)


async def test_progress_counts_passages(tmp_path: Path, index: VectorIndex) -> None:
    heard = Heard()
    ingested = await ingestor(index).ingest(source(tmp_path, PROSE.encode()), heard)
    embedding = [(done, total) for stage, done, total in heard.stages if stage == Stage.EMBEDDING]
    assert embedding == [(done, len(ingested.passages)) for done in range(0, len(ingested.passages), 16)]
    assert len(embedding) > 1


async def test_doing_it_again_replaces_it(tmp_path: Path, index: VectorIndex) -> None:
    first = await ingestor(index).ingest(source(tmp_path, PROSE.encode()), Heard())
    again = await ingestor(index).ingest(source(tmp_path, PROSE[:200].encode()), Heard())
    assert set(again.passages) < set(first.passages)
    assert await index.count("acme", "doc_1") == len(again.passages)


@pytest.mark.parametrize("stage", list(Stage))
async def test_it_stops_where_it_is_told_to(tmp_path: Path, index: VectorIndex, stage: Stage) -> None:
    with pytest.raises(InterruptedError):
        await ingestor(index).ingest(source(tmp_path, PROSE.encode()), Heard(stop_at=stage))
    assert await index.count("acme", "doc_1") == 0


async def test_a_file_nobody_can_read(tmp_path: Path, index: VectorIndex) -> None:
    with pytest.raises(BrokenDocument):
        await ingestor(index).ingest(source(tmp_path, b"%PDF-1.4 nonsense"), Heard())


async def test_forgetting_takes_one_revision(tmp_path: Path, index: VectorIndex) -> None:
    service = ingestor(index)
    kept = await service.ingest(source(tmp_path, b"kept words", "rev_1"), Heard())
    await service.ingest(source(tmp_path, b"other words", "rev_2"), Heard())
    await service.forget("acme", "doc_1", "rev_2")
    assert {hit.passage_id for hit in await index.search("acme", EMBEDDER.encode(["words"])[0], 9)} == set(kept.passages)


def test_passage_ids_are_uuids_of_revision_and_place() -> None:
    names = {passage_id(revision, ordinal) for revision in ("rev_1", "rev_2", "rev_11") for ordinal in range(20)}
    assert len(names) == 60
    assert all(str(uuid.UUID(name)) == name for name in names)
    assert passage_id("rev_1", 3) == passage_id("rev_1", 3)
