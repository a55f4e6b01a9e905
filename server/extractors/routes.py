"""`/extractors`."""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import APIRouter, Header, Request
from fastapi.responses import JSONResponse, Response

from server.documents.idempotency import Stored
from server.errors import (
    DocumentNotFound,
    ExtractorInUse,
    ExtractorNotFound,
    ExtractorNotServable,
    IdempotencyInFlight,
    IdempotencyKeyReused,
    InvalidQuestions,
    ObjectStoreUnavailable,
    Starting,
    TooLarge,
    UnsupportedMediaType,
)
from server.extractors import deletion, service
from server.extractors.requests import received
from server.extractors.schemas import Extractor, ExtractorList, Switched, TrainExtractor, TrainFields
from server.idempotent import IdempotencyKey, reserved
from server.jobs.schemas import Job
from server.parts import PartsOf
from server.problems import documented
from server.schemas import Id, inline_schema
from server.security import Reader, Writer

router = APIRouter(tags=["extractors"])

_QUESTION: Final = {"document_id": "doc_3f2a1b0c9d8e7f6a5b4c0f8b7a6c5d4e", "question": "How many days of leave?", "answer": "31 days"}
_FORM: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["file"],
    "properties": {
        "file": {"type": "string", "format": "binary", "description": "JSON lines, a question each"},
        **inline_schema(TrainFields)["properties"],
        "documents": {"type": "string", "description": "a JSON list of ids"},
        "recipe": {"type": "string", "description": "a JSON object"},
    },
}
_BODY: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": inline_schema(TrainExtractor),
                "example": {"name": "Short answers", "questions": [_QUESTION], "recipe": {"max_steps": 200}, "activate": True},
            },
            "multipart/form-data": {
                "schema": _FORM,
                "example": {"file": "(JSON lines)", "name": "Short answers", "recipe": '{"max_steps": 200}', "activate": "true"},
            },
        },
    }
}


@router.post(
    "/extractors",
    operation_id="train_extractor",
    status_code=202,
    response_model=Job,
    responses=documented(DocumentNotFound, InvalidQuestions, TooLarge, UnsupportedMediaType, IdempotencyInFlight, IdempotencyKeyReused),
    openapi_extra=_BODY,
)
async def train_extractor(request: Request, parts: PartsOf, caller: Writer, idempotency_key: IdempotencyKey = None) -> Response:
    """Train a knowledge extractor on questions about your documents: follow its job at `Location`.

    Questions come in JSON, or as a file with one JSON object a line. Each is about a document of yours that is indexed.
    """
    async with reserved(parts, caller.tenant, idempotency_key) as held:
        wanted = await received(request)
        if isinstance(held, Stored):
            stored = held.for_request(wanted.request_sha256())
            outcome = service.Outcome(status=stored.status, body=stored.response)
        else:
            outcome = await service.train(parts, caller, wanted, held)
    return JSONResponse(outcome.body, outcome.status, headers={"Location": outcome.location})


@router.get("/extractors", operation_id="list_extractors", responses=documented())
async def list_extractors(parts: PartsOf, caller: Reader) -> ExtractorList:
    """Your extractors and the system's, newest first, and the trainings of yours that are under way."""
    return await service.listed(parts, caller)


@router.get(
    "/extractors/{extractor_id}",
    operation_id="get_extractor",
    response_model=Extractor,
    responses={304: {"description": "It has the ETag that If-None-Match names."}, **documented(ExtractorNotFound)},
)
async def get_extractor(
    extractor_id: Id, parts: PartsOf, caller: Reader, if_none_match: Annotated[str | None, Header()] = None
) -> Response:
    """An extractor with what it was trained on, and how many of your documents wear it."""
    found = await service.show(parts, caller, extractor_id)
    headers = {"ETag": found.etag, "Cache-Control": "no-cache"}
    if if_none_match is not None and if_none_match.removeprefix("W/") == found.etag:
        return Response(status_code=304, headers=headers)
    return JSONResponse(found.model_dump(mode="json"), headers=headers)


@router.post(
    "/extractors/{extractor_id}/activate",
    operation_id="activate_extractor",
    responses=documented(ExtractorNotFound, ExtractorNotServable, ObjectStoreUnavailable, Starting),
)
async def activate_extractor(extractor_id: Id, parts: PartsOf, caller: Writer) -> Switched:
    """Let it answer from the next question on, in place of its owner's active one.

    With another lora than before, the documents whose modules wear another one are trained again. Once active, again is no change.
    """
    return await service.activate(parts, caller, extractor_id)


@router.post("/extractors/{extractor_id}/deactivate", operation_id="deactivate_extractor", responses=documented(ExtractorNotFound))
async def deactivate_extractor(extractor_id: Id, parts: PartsOf, caller: Writer) -> Switched:
    """Let its owner have no active extractor: a tenant is then served with the system's, if that has one.

    Modules that wear its lora keep it. No change if it is not active.
    """
    return await service.deactivate(parts, caller, extractor_id)


@router.delete(
    "/extractors/{extractor_id}",
    operation_id="delete_extractor",
    status_code=204,
    responses=documented(ExtractorNotFound, ExtractorInUse),
)
async def delete_extractor(extractor_id: Id, parts: PartsOf, caller: Writer) -> None:
    """Delete an extractor with its weights; not while it is active, nor while modules wear its lora and no other one is over that."""
    await deletion.delete(parts, caller, extractor_id)
