"""What a request to train an extractor holds: its fields, and questions as JSON or as a file of JSON lines.

All of it is in memory while it is taken; the limit bounds it. Knows nothing of rows, tenants or jobs.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from server.documents.multipart import Form, boundary_of
from server.errors import InvalidInput, InvalidQuestions, TooLarge, UnsupportedMediaType
from server.extractors.schemas import MAX_QUESTIONS, MAX_REQUEST_BYTES, Question, TrainExtractor, TrainFields

F = TypeVar("F", bound=TrainFields)
MOST_TOLD: Final = 20
"""Of the lines that are wrong."""
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
_IN_JSON: Final = ("documents", "recipe")
"""Fields of a form that are JSON."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A question and its line in the file, or its place in the list; both count from 1."""

    line: int
    question: Question


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """One request."""

    fields: TrainFields
    questions: tuple[Asked, ...]

    def request_sha256(self) -> str:
        """The same for two requests that ask for the same; never that of another operation."""
        fields = self.fields.model_dump(mode="json", include=set(TrainFields.model_fields))
        questions = [asked.question.model_dump(mode="json") for asked in self.questions]
        asked_for = {"operation": "train_extractor", "fields": fields, "questions": questions}
        return hashlib.sha256(json.dumps(asked_for, sort_keys=True).encode()).hexdigest()


def wrong_lines(wrong: Sequence[tuple[int, str]]) -> InvalidQuestions:
    """The refusal of questions; says what is wrong in which lines, never what stands there."""
    told = [{"line": line, "message": message} for line, message in wrong[:MOST_TOLD]]
    where = "; ".join(f"line {line}: {message}" for line, message in wrong[:3])
    more = "" if len(wrong) <= 3 else f"; and {len(wrong) - 3} more" if len(wrong) < MOST_TOLD else "; and more"
    return InvalidQuestions(f"the questions are not valid: {where}{more}", errors=told)


async def received(request: Request) -> Wanted:
    """Read a multipart or JSON request. Raises TooLarge as soon as it is more than its limit, UnsupportedMediaType, InvalidInput,
    InvalidQuestions, RequestValidationError."""
    content_type = request.headers.get("content-type", "")
    boundary = boundary_of(content_type)
    if boundary is not None:
        return await _form(request, boundary)
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise UnsupportedMediaType("send questions as application/json, or as a file of JSON lines in multipart/form-data")
    body = bytearray()
    async for piece in request.stream():
        _grow(body, piece)
    return await asyncio.to_thread(_listed, bytes(body))


def _listed(body: bytes) -> Wanted:
    wanted = _checked(lambda: TrainExtractor.model_validate_json(body))
    return Wanted(fields=wanted, questions=tuple(Asked(line=place, question=each) for place, each in enumerate(wanted.questions, start=1)))


async def _form(request: Request, boundary: bytes) -> Wanted:
    form, file, read = Form(boundary), bytearray(), 0
    async for piece in request.stream():
        read += len(piece)
        if read > 2 * MAX_REQUEST_BYTES:
            raise _too_large()
        _grow(file, form.feed(piece))
    form.close()
    fields = _fields(form.fields)
    return Wanted(fields=fields, questions=await asyncio.to_thread(_lines, bytes(file)))


def _lines(file: bytes) -> tuple[Asked, ...]:
    found: list[Asked] = []
    wrong: list[tuple[int, str]] = []
    for line, text in enumerate(file.removeprefix(_BYTE_ORDER_MARK).split(b"\n"), start=1):
        if not text.strip():
            continue
        try:
            found.append(Asked(line=line, question=Question.model_validate_json(text)))
        except ValidationError as error:
            wrong.append((line, _message(error)))
        if len(wrong) == MOST_TOLD:
            break
    if wrong:
        raise wrong_lines(wrong)
    if not 0 < len(found) <= MAX_QUESTIONS:
        raise InvalidQuestions(f"the file has {len(found)} questions; send 1 to {MAX_QUESTIONS}, one JSON object a line")
    return tuple(found)


def _message(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    if first["type"] == "json_invalid":
        return "it is not a JSON object"
    return ": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, "))))


def _fields(form: dict[str, str]) -> TrainFields:
    given: dict[str, Any] = {name: value for name, value in form.items() if value != ""}
    for name in given.keys() & set(_IN_JSON):
        try:
            given[name] = json.loads(given[name])
        except (ValueError, RecursionError):
            raise InvalidInput(f"the field {name} is not JSON") from None
    return _checked(lambda: TrainFields.model_validate(given))


def _checked(read: Callable[[], F]) -> F:
    try:
        return read()
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False, include_context=False)
        raise RequestValidationError([{**item, "loc": ("body", *item["loc"])} for item in found]) from None


def _grow(body: bytearray, piece: bytes) -> None:
    if len(body) + len(piece) > MAX_REQUEST_BYTES:
        raise _too_large()
    body += piece


def _too_large() -> TooLarge:
    return TooLarge(f"questions have at most {MAX_REQUEST_BYTES} bytes", limit=MAX_REQUEST_BYTES)
