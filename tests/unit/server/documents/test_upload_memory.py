"""How much memory an upload takes: a file in a form next to none, text in JSON a bounded multiple of itself."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from starlette.requests import Request
from starlette.types import Message

from server.db.blobs import BlobStore
from server.documents.uploads import received

MIB = 1024 * 1024
SIZE = 16 * MIB
PIECE = 64 * 1024
BOUNDARY = "limit"


def request(content_type: str, pieces: Iterable[bytes]) -> Request:
    """As the web server gives it: a piece at a time."""
    left = iter(pieces)

    async def receive() -> Message:
        piece = next(left, None)
        return {"type": "http.request", "body": piece or b"", "more_body": piece is not None}

    return Request({"type": "http", "method": "POST", "headers": [(b"content-type", content_type.encode())]}, receive)


def form() -> Iterable[bytes]:
    yield f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\n'.encode()
    for _ in range(SIZE // PIECE):
        yield b"x" * PIECE
    yield f"\r\n--{BOUNDARY}--\r\n".encode()


def text(end: str) -> Iterable[bytes]:
    yield b'{"text": "'
    for _ in range(SIZE // PIECE):
        yield b"x" * PIECE
    yield json.dumps(end)[1:].encode() + b"}"


@pytest.fixture
def traced() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


async def peak(blobs: BlobStore, asked: Request, size: int) -> float:
    """In sizes of the upload."""
    tracemalloc.reset_peak()
    before, _ = tracemalloc.get_traced_memory()
    async with received(asked, blobs, 32 * MIB) as upload:
        assert upload.size == size
    return (tracemalloc.get_traced_memory()[1] - before) / SIZE


@pytest.mark.usefixtures("traced")
async def test_a_file_in_a_form_is_never_gathered(tmp_path: Path) -> None:
    assert await peak(BlobStore(tmp_path), request(f"multipart/form-data; boundary={BOUNDARY}", form()), SIZE) < 0.1


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize(("end", "times"), [("end", 2.5), ("\N{SLIGHTLY SMILING FACE}", 9.0)])
async def test_text_in_json_takes_no_more_than_is_documented(tmp_path: Path, end: str, times: float) -> None:
    """One character outside the basic plane makes Python keep four bytes for each."""
    assert await peak(BlobStore(tmp_path), request("application/json", text(end)), SIZE + len(end.encode())) < times
