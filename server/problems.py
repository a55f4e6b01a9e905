"""Errors as RFC 9457 problem documents: what a refused request is told, and what OpenAPI says about it.

Every document carries our stable `code`, so the error tree is the only list of errors. Why no library: docs/adr/0010.
"""

from __future__ import annotations

import errno
import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from asgi_correlation_id import correlation_id
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import (
    DatabaseUnavailable,
    Forbidden,
    InvalidInput,
    KmserveError,
    MethodNotAllowed,
    NotFound,
    RequestTooLarge,
    Starting,
    StorageFull,
    TooManyRequests,
    Unauthorized,
    UnknownMode,
    UnsupportedMediaType,
)

MEDIA_TYPE = "application/problem+json"
EVERYWHERE: tuple[type[KmserveError], ...] = (Unauthorized, Forbidden, InvalidInput, DatabaseUnavailable, KmserveError)
"""What any authorised operation may answer."""

_BY_STATUS: Mapping[int, type[KmserveError]] = {404: NotFound, 405: MethodNotAllowed, 413: RequestTooLarge, 415: UnsupportedMediaType}
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
logger = logging.getLogger(__name__)


class Problem(BaseModel):
    """`code` is the name to branch on, `detail` a sentence for people. Some codes add members of their own, see docs/errors.md."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(examples=["urn:kmserve:error:document_not_found"])
    title: str = Field(examples=["Document not found"])
    status: int = Field(examples=[404])
    code: str = Field(examples=["document_not_found"])
    detail: str = Field(examples=["no such document"])
    request_id: str | None = Field(default=None, examples=["req_5f0c2d3e4b5a69788796a5b4c3d2e1f0"])


def problem_of(error: KmserveError) -> dict[str, Any]:
    """The members of an error's problem document."""
    members = {"type": f"urn:kmserve:error:{error.code}", "title": _title(error.code), "status": error.status, "code": error.code}
    return {**error.extra, **members, "detail": error.detail, "request_id": correlation_id.get()}


def problem_json(error: KmserveError) -> str:
    return json.dumps(problem_of(error))


def respond(error: KmserveError) -> Response:
    return JSONResponse(problem_of(error), error.status, headers=_headers(error), media_type=MEDIA_TYPE)


def documented(*errors: type[KmserveError], everywhere: Sequence[type[KmserveError]] = EVERYWHERE) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's `responses` of an operation that may end in these errors, besides those that any may end in."""
    by_status: dict[int | str, list[type[KmserveError]]] = {}
    for error in dict.fromkeys((*errors, *everywhere)):
        by_status.setdefault(error.status, []).append(error)
    return {status: _documented_status(found) for status, found in sorted(by_status.items(), key=lambda pair: str(pair[0]))}


def known(error: Exception) -> KmserveError | None:
    """Our error for one of a library that an operator can mend."""
    if isinstance(error, KmserveError):
        return error
    if (isinstance(error, OSError) and error.errno in _FULL) or "disk is full" in str(error):
        return StorageFull("the server's storage is full; nothing was kept of this request")
    if isinstance(error, OperationalError | InterfaceError | PoolTimeout):
        return DatabaseUnavailable("the database cannot be reached; try again")
    return None


def install(app: FastAPI) -> None:
    app.add_exception_handler(KmserveError, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(ClientDisconnect, _unheard)


class Guard:
    """Outermost of the application's own layers: what nothing else caught is logged and answered with a problem document."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception as error:
            if scope["type"] != "http":
                raise
            answer = known(error) or KmserveError("the server failed; its log has the reason under this request id")
            logger.error("request failed [%s]", answer.code, exc_info=error)
            if started:
                raise
            await respond(answer)(scope, receive, send)


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, KmserveError)
    return respond(error)


async def _invalid(_: Request, error: Exception) -> Response:
    """What was wrong and where; never the value, which may be a secret or a document."""
    assert isinstance(error, RequestValidationError)
    found = [{"loc": list(item["loc"]), "message": item["msg"], "type": item["type"]} for item in error.errors()]
    kind = UnknownMode if any(item["loc"] == ["body", "mode"] and item["type"] == "enum" for item in found) else InvalidInput
    where = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['message']}" for item in found[:5])
    return respond(kind(f"the request is not valid: {where}", errors=found))


async def _http(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    kind = _BY_STATUS.get(error.status_code, InvalidInput if error.status_code < 500 else KmserveError)
    response = respond(kind(str(error.detail)))
    response.headers.update(error.headers or {})
    return response


async def _unheard(_: Request, __: Exception) -> Response:
    """The client closed the connection: nobody reads this, the access log does."""
    return Response(status_code=499)


def _headers(error: KmserveError) -> dict[str, str]:
    if isinstance(error, Unauthorized):
        return {"WWW-Authenticate": "Bearer"}
    if isinstance(error, TooManyRequests):
        return {"Retry-After": str(error.retry_after)}
    if isinstance(error, Starting):
        return {"Retry-After": str(max(2, error.extra.get("failure", {}).get("retry_in_seconds", 0)))}
    return {}


def _documented_status(errors: Sequence[type[KmserveError]]) -> dict[str, Any]:
    codes = [error.code for error in errors]
    examples = {code: {"value": _example(error)} for code, error in zip(codes, errors, strict=True)}
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}, "examples": examples}}
    return {"description": " · ".join(f"`{code}`" for code in codes), "content": content}


def _example(error: type[KmserveError]) -> dict[str, Any]:
    members = {"type": f"urn:kmserve:error:{error.code}", "title": _title(error.code), "status": error.status, "code": error.code}
    return {**members, "detail": "…", "request_id": "req_5f0c2d3e4b5a69788796a5b4c3d2e1f0"}


def _title(code: str) -> str:
    return code.replace("_", " ").capitalize()
