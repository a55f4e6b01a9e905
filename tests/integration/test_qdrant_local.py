"""What the local index leaves on the disk, and who may open it."""

from __future__ import annotations

import asyncio
import sqlite3
import stat
import sys
import uuid
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from server.errors import IndexUnavailable
from server.retrieval.index import VectorIndex
from server.retrieval.types import Point
from tests.support.embeddings import FakeEmbedder

EMBEDDER = FakeEmbedder()
HOLD = """
import sys
from qdrant_client import QdrantClient
client = QdrantClient(path=sys.argv[1])
print("open", flush=True)
sys.stdin.read()
"""


def local(path: Path) -> VectorIndex:
    return VectorIndex(model=EMBEDDER.name, dimension=EMBEDDER.dimension, path=path)


def bytes_below(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def free_pages(folder: Path) -> int:
    (file,) = folder.rglob("storage.sqlite")
    with closing(sqlite3.connect(file)) as storage:
        return int(storage.execute("PRAGMA freelist_count").fetchone()[0])


@pytest.fixture
def plain_sqlite(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some builds of SQLite overwrite deleted rows by themselves: this one does not."""
    connect = sqlite3.connect

    def plain(*arguments: Any, **options: Any) -> sqlite3.Connection:
        made: sqlite3.Connection = connect(*arguments, **options)
        made.execute("PRAGMA secure_delete=OFF").fetchall()
        return made

    monkeypatch.setattr(sqlite3, "connect", plain)


@pytest.mark.usefixtures("plain_sqlite")
@pytest.mark.parametrize("step", ["document", "revision"])
async def test_nothing_of_a_deleted_document_is_left_in_the_files(tmp_path: Path, step: str) -> None:
    index = local(tmp_path / "qdrant")
    await index.open()
    for document in ("doc_gone", "doc_kept"):
        vectors = EMBEDDER.encode([f"{document} {number}" for number in range(50)])
        passages = [Point(passage_id=str(uuid.uuid4()), vector=vector) for vector in vectors]
        await index.upsert("acme", document, f"rev_of_{document}", passages)
    assert b"doc_gone" in bytes_below(tmp_path)
    if step == "document":
        await index.delete_document("acme", "doc_gone")
    else:
        await index.delete_revision("acme", "doc_gone", "rev_of_doc_gone")
    left = bytes_below(tmp_path)
    assert b"doc_gone" not in left
    assert b"doc_kept" in left
    assert free_pages(tmp_path) > 0, "a deletion must not rewrite the whole file"
    await index.close()
    again = local(tmp_path / "qdrant")
    await again.open()
    assert (await again.count("acme", "doc_gone"), await again.count("acme", "doc_kept")) == (0, 50)
    await again.close()


async def test_the_directory_is_for_its_owner_alone(tmp_path: Path) -> None:
    folder = tmp_path / "qdrant"
    folder.mkdir(mode=0o755)
    index = local(folder)
    await index.open()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    await index.close()


async def test_another_process_that_has_it_open(tmp_path: Path) -> None:
    pipe = asyncio.subprocess.PIPE
    other = await asyncio.create_subprocess_exec(sys.executable, "-c", HOLD, str(tmp_path), stdin=pipe, stdout=pipe)
    assert other.stdout is not None
    assert await other.stdout.readline() == b"open\n"
    with pytest.raises(IndexUnavailable, match="another process"):
        await local(tmp_path).open()
    other.kill()
    await other.wait()
    index = local(tmp_path)
    await index.open()
    await index.close()
