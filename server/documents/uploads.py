"""The bytes of an upload on their way to the disk, hashed and counted.

A file in a form is written as it arrives: no more of it is in memory than one piece. Text in JSON has to be parsed, so all of it is in
memory, a few times over, while it is taken; what bounds it is the limit of uploads.

    async with received(request, blobs, limit) as upload: ...      upload.file is gone afterwards, unless it was adopted

Knows nothing of rows, tenants or jobs.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from server.db.blobs import BlobStore
from server.documents.multipart import Form, boundary_of
from server.documents.schemas import MAX_METADATA_BYTES, TextUpload, UploadFields
from server.errors import EmptyDocument, InvalidInput, TooLarge, UnsupportedMediaType

F = TypeVar("F", bound=UploadFields)
UNTITLED: Final = "Untitled document"
_ROOM_FOR_FIELDS: Final = 1024 * 1024
_UNPRINTABLE: Final = re.compile(r"[\x00-\x1f\x7f]")
_LONGEST_NAME: Final = 255


@dataclass(frozen=True, kw_only=True)
class Upload:
    """`file` holds `size` bytes of hash `sha256`; `filename` is for display alone."""

    file: Path
    sha256: str
    size: int
    filename: str | None
    fields: UploadFields

    @property
    def title(self) -> str:
        return self.fields.title or self.filename or UNTITLED

    def request_sha256(self) -> str:
        """The same for two requests that ask for the same."""
        asked = {
            "sha256": self.sha256,
            "filename": self.filename,
            **self.fields.model_dump(mode="json", include=set(UploadFields.model_fields)),
        }
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


@asynccontextmanager
async def received(request: Request, blobs: BlobStore, limit: int) -> AsyncIterator[Upload]:
    """Read a multipart or JSON upload of at most `limit` bytes.

    Raises TooLarge as soon as it is more, and reads no further; UnsupportedMediaType, EmptyDocument, InvalidInput.
    """
    content_type = request.headers.get("content-type", "")
    boundary = boundary_of(content_type)
    if boundary is None and content_type.partition(";")[0].strip().lower() != "application/json":
        raise UnsupportedMediaType("send a document as multipart/form-data, or text as application/json")
    if int(_digits(request.headers.get("content-length"))) > limit + _ROOM_FOR_FIELDS:
        raise _too_large(limit)
    file = await asyncio.to_thread(blobs.temporary)
    writer = _Writer(file, limit)
    try:
        upload = await (_form(request, writer, boundary) if boundary is not None else _text(request, writer))
        if upload.size == 0:
            raise EmptyDocument("the document is empty")
        yield upload
    finally:
        writer.close()
        file.unlink(missing_ok=True)


def display_name(filename: str | None) -> str | None:
    """The last part of a path-like name, without control characters; None where nothing is left."""
    name = _UNPRINTABLE.sub("", (filename or "").replace("\\", "/").rpartition("/")[2]).strip()
    return None if name in ("", ".", "..") else name[-_LONGEST_NAME:]


class _Writer:
    def __init__(self, path: Path, limit: int) -> None:
        self._file: BinaryIO = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")
        self._hash = hashlib.sha256()
        self.path = path
        self.limit = limit
        self.size = 0

    async def write(self, data: bytes) -> None:
        self.size += len(data)
        if self.size > self.limit:
            raise _too_large(self.limit)
        if data:
            await asyncio.to_thread(self._write, data)

    async def done(self, filename: str | None, fields: UploadFields) -> Upload:
        await asyncio.to_thread(self._file.flush)
        return Upload(file=self.path, sha256=self._hash.hexdigest(), size=self.size, filename=display_name(filename), fields=fields)

    def close(self) -> None:
        self._file.close()

    def _write(self, data: bytes) -> None:
        self._hash.update(data)
        self._file.write(data)


async def _form(request: Request, writer: _Writer, boundary: bytes) -> Upload:
    form = Form(boundary)
    async for piece in _pieces(request, writer.limit):
        await writer.write(form.feed(piece))
    form.close()
    return await writer.done(form.filename, _fields(form.fields))


async def _text(request: Request, writer: _Writer) -> Upload:
    body = bytearray()
    async for piece in _pieces(request, writer.limit):
        body += piece
    fields = await asyncio.to_thread(_parsed, body)
    body.clear()
    await writer.write(fields.text.encode())
    return await writer.done(fields.filename, fields)


async def _pieces(request: Request, limit: int) -> AsyncIterator[bytes]:
    """The body, up to the limit and some room for its fields: what surrounds the document is bounded too."""
    read = 0
    async for piece in request.stream():
        read += len(piece)
        if read > limit + _ROOM_FOR_FIELDS:
            raise _too_large(limit)
        yield piece


def _fields(form: dict[str, str]) -> UploadFields:
    given: dict[str, Any] = {name: value for name, value in form.items() if value != ""}
    if "metadata" in given:
        try:
            given["metadata"] = json.loads(given["metadata"])
        except (ValueError, RecursionError):
            raise InvalidInput("the field metadata is not JSON") from None
    return _checked(lambda: UploadFields.model_validate(given))


def _parsed(body: bytearray) -> TextUpload:
    return _checked(lambda: TextUpload.model_validate_json(body))


def _checked(read: Callable[[], F]) -> F:
    try:
        fields = read()
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False, include_context=False)
        raise RequestValidationError([{**item, "loc": ("body", *item["loc"])} for item in found]) from None
    _check_metadata(fields.metadata)
    return fields


def _check_metadata(metadata: dict[str, Any]) -> None:
    """What every database can store and every client can read: no NUL, no half characters, no numbers that JSON does not have."""
    try:
        stored = json.dumps(metadata, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        raise InvalidInput("metadata is not JSON") from None
    if len(stored) > MAX_METADATA_BYTES or b"\\u0000" in stored:
        raise InvalidInput(f"metadata has at most {MAX_METADATA_BYTES} bytes as JSON, and no NUL characters")


def _digits(header: str | None) -> str:
    return header if header is not None and header.isdecimal() else "0"


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"a document has at most {limit} bytes", limit=limit)
