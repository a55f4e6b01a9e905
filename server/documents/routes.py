"""`/documents`."""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import JSONResponse, Response

from server.db.tables import DocumentStatus
from server.documents import deletion, following, retrying, service, training
from server.documents.idempotency import Reservation, Stored
from server.documents.recipes import TrainModule
from server.documents.repository import Order
from server.documents.schemas import Document, DocumentPage, Receipt, TextUpload, Uploaded, UploadFields
from server.documents.uploads import received
from server.errors import (
    Conflict,
    DocumentNotFound,
    EmptyDocument,
    IdempotencyInFlight,
    IdempotencyKeyReused,
    IndexUnavailable,
    JobUnderWay,
    NotCancellable,
    NotRetrievable,
    NotRetryable,
    Starting,
    StorageFull,
    TooLarge,
    UnsupportedMediaType,
)
from server.idempotent import IdempotencyKey, reserved
from server.parts import Parts, PartsOf
from server.problems import documented
from server.schemas import Id, inline_schema
from server.security import Caller, Reader, Writer
from server.streams import EventStream, described

router = APIRouter(tags=["documents"])

_FORM: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["file"],
    "properties": {
        "file": {"type": "string", "format": "binary"},
        **inline_schema(UploadFields)["properties"],
        "metadata": {"type": "string", "description": "a JSON object"},
    },
}
_BODY: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": _FORM,
                "example": {"file": "(the bytes)", "title": "Leave policy", "metadata": '{"department": "hr"}', "train": "auto"},
            },
            "application/json": {
                "schema": inline_schema(TextUpload),
                "example": {"text": "Staff get 31 days of leave.", "title": "Leave policy", "train": "auto", "preset": "quick"},
            },
        },
    }
}
_SAME: Final[dict[str, Any]] = {"model": Uploaded, "description": "The tenant has a document with these bytes: it is returned."}
_EVENTS: Final[dict[str, Any]] = {
    "content": described({"document": "a Document", "deleted": "`{document_id}`, and the stream ends"}),
    "description": "Server-sent events.",
}
_UPLOAD_ERRORS: Final = (
    TooLarge,
    UnsupportedMediaType,
    EmptyDocument,
    IdempotencyInFlight,
    IdempotencyKeyReused,
    Conflict,
    StorageFull,
)


@router.post(
    "/documents",
    operation_id="upload_document",
    status_code=202,
    response_model=Uploaded,
    responses={200: _SAME, **documented(*_UPLOAD_ERRORS)},
    openapi_extra=_BODY,
)
async def upload_document(
    request: Request,
    parts: PartsOf,
    caller: Writer,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Upload a document, as a file or as text. It is read, indexed, and then its module is trained: follow it at `Location`.

    The type is found from the bytes. The same bytes again give the existing document, whatever else is sent with them.
    """
    async with reserved(parts, caller.tenant, idempotency_key) as held:
        return await _upload(request, parts, caller, held)


async def _upload(request: Request, parts: Parts, caller: Caller, held: Stored | Reservation | None) -> Response:
    async with received(request, parts.blobs, parts.settings.max_upload_bytes) as upload:
        if isinstance(held, Stored):
            stored = held.for_request(upload.request_sha256())
            outcome = service.Outcome(status=stored.status, body=stored.response)
        else:
            outcome = await service.upload(parts, caller.tenant, upload, held)
    return JSONResponse(outcome.body, outcome.status, headers={"Location": outcome.location})


@router.get("/documents", operation_id="list_documents", responses=documented())
async def list_documents(
    parts: PartsOf,
    caller: Reader,
    after: Annotated[str | None, Query(max_length=300)] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 50,
    order: Order = "desc",
    status: DocumentStatus | None = None,
) -> DocumentPage:
    """Your documents by their creation, page after page: `next` of one page is `after` of the following."""
    return await service.listed(parts, caller.tenant, after=after, limit=limit, order=order, status=status)


@router.get(
    "/documents/{document_id}",
    operation_id="get_document",
    response_model=Document,
    responses={304: {"description": "It has the ETag that If-None-Match names."}, **documented(DocumentNotFound)},
)
async def get_document(
    document_id: Id,
    parts: PartsOf,
    caller: Reader,
    wait: Annotated[int, Query(ge=0, le=following.LONGEST_WAIT_SECONDS)] = 0,
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    """A document with its revision, its module and its newest job. The ETag is its row version.

    With `wait`, the answer comes when the document differs from the ETag in If-None-Match (without one: at its next change, at once if it
    has settled), at the latest after that many seconds. A job's progress is no change of the document: follow it by `events`.
    """
    known = None if if_none_match is None else if_none_match.removeprefix("W/")
    if wait:
        found = await following.changed(parts, caller.tenant, document_id, seconds=wait, known_etag=known)
    else:
        found = await service.show(parts, caller.tenant, document_id)
    headers = {"ETag": found.etag, "Cache-Control": "no-cache"}
    if found.etag == known:
        return Response(status_code=304, headers=headers)
    return JSONResponse(found.model_dump(mode="json"), headers=headers)


@router.get(
    "/documents/{document_id}/events",
    operation_id="follow_document",
    status_code=200,
    response_class=EventStream,
    responses={200: _EVENTS, **documented(DocumentNotFound)},
)
async def follow_document(
    document_id: Id, parts: PartsOf, caller: Reader, last_event_id: Annotated[str | None, Header()] = None
) -> EventStream:
    """Server-sent events named `document`, each the whole document, at every change of it or of its job's progress.

    The stream begins with the document as it is, unless Last-Event-ID names just that, and ends when it has settled (event `deleted`
    when it was deleted).
    """
    first = await service.show(parts, caller.tenant, document_id)
    return EventStream(following.events(parts, caller.tenant, first, last_event_id))


@router.post("/documents/{document_id}/cancel", operation_id="cancel_document", responses=documented(DocumentNotFound, NotCancellable))
async def cancel_document(document_id: Id, parts: PartsOf, caller: Writer) -> Document:
    """Stop the document's ingest or training: at once if it is queued, else within seconds."""
    return await service.cancel(parts, caller.tenant, document_id)


@router.post(
    "/documents/{document_id}/retry",
    operation_id="retry_document",
    responses=documented(DocumentNotFound, NotRetryable, IndexUnavailable, Starting),
)
async def retry_document(document_id: Id, parts: PartsOf, caller: Writer) -> Document:
    """Start the document's ingest or training again: after it failed or was cancelled, where its passages are not indexed for the
    embedding model in use, or where its module is in quarantine, gone or of another base model."""
    return await retrying.retry(parts, caller.tenant, document_id)


@router.post(
    "/documents/{document_id}/modules",
    operation_id="train_module",
    status_code=202,
    responses=documented(DocumentNotFound, JobUnderWay, NotRetrievable),
)
async def train_module(document_id: Id, wanted: TrainModule, parts: PartsOf, caller: Writer) -> Document:
    """Train the document's module again, with another preset or changes to its recipe. The module that is there answers until the new one
    is published, and goes on if that does not pass its gate."""
    return await training.train(parts, caller.tenant, document_id, wanted)


@router.delete("/documents/{document_id}", operation_id="delete_document", responses=documented(DocumentNotFound))
async def delete_document(document_id: Id, parts: PartsOf, caller: Writer) -> Receipt:
    """Delete a document in whatever state it is, with everything made of it: text, passages, vectors, modules, leftovers of trainings."""
    return await deletion.delete(parts, caller.tenant, document_id)
