"""Following a document: a long poll that ends at its next change, and a stream of events that ends when it has settled.

The workers that change documents are other processes, so the row is looked at again and again; each look is a transaction of its own.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncGenerator
from typing import Final

from server.documents import repository, service
from server.documents.schemas import Document
from server.errors import DocumentNotFound
from server.parts import Parts
from server.streams import sse
from server.transactions import reading

LONGEST_WAIT_SECONDS: Final = 60
LOOK_SECONDS: Final = 0.3


async def changed(parts: Parts, tenant_id: str, document_id: str, *, seconds: float, known_etag: str | None) -> Document:
    """The document as soon as it differs from what the caller knows, at the latest after `seconds`.

    Without `known_etag` the caller knows nothing: a settled document is returned at once, another at its next change. Raises
    DocumentNotFound, also when the document is deleted meanwhile.
    """
    deadline = time.monotonic() + seconds
    first = await service.show(parts, tenant_id, document_id)
    if first.etag != (known_etag or first.etag) or (known_etag is None and first.settled):
        return first
    version = first.row_version
    while version == first.row_version and (left := deadline - time.monotonic()) > 0:
        await asyncio.sleep(min(LOOK_SECONDS, left))
        version = await reading(parts.database, repository.row_version, tenant_id, document_id)
    return first if version == first.row_version else await service.show(parts, tenant_id, document_id)


async def events(parts: Parts, tenant_id: str, first: Document, last_event_id: str | None) -> AsyncGenerator[bytes, None]:
    """`document` events, one for each change of the document or its job's progress, but not the one the client has seen last.

    A document that is deleted meanwhile ends the stream with an event `deleted`.
    """
    current, seen = first, last_event_id
    while True:
        if (event_id := _event_id(current)) != seen:
            yield sse("document", current, event_id)
            seen = event_id
        if current.settled:
            return
        await asyncio.sleep(LOOK_SECONDS)
        try:
            current = await service.show(parts, tenant_id, current.id)
        except DocumentNotFound:
            yield sse("deleted", f'{{"document_id":"{current.id}"}}', "deleted")
            return


def _event_id(document: Document) -> str:
    """Changes whenever what is shown does."""
    return f"{document.row_version}-{hashlib.sha256(document.model_dump_json().encode()).hexdigest()[:16]}"
