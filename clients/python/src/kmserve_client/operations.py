"""Every operation of the API, written once as a `Flow` or `StreamFlow`; `Client` and `AsyncClient` run them.

Knows paths, bodies and what a reply means; no sockets. The event streams are in `streams.py`.
"""

from __future__ import annotations

import io
import json
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict, TypeVar, Unpack

from pydantic import ValidationError

from kmserve_client.effects import Call, Emit, File, Flow, Reply, StreamFlow
from kmserve_client.errors import ApiError, ConnectionFailed, DocumentFailed, UnexpectedResponse, WaitTimeout
from kmserve_client.models import Answer, ApiKey, Citation, Document, Job, Mode, NewApiKey, Receipt, Value
from kmserve_client.retries import send, worth_repeating

V = TypeVar("V", bound=Value)
Preset = Literal["quick", "standard", "paper"]
LONG_POLL_SECONDS = 20.0


def upload(
    path: str | Path | None = None,
    *,
    content: bytes | None = None,
    text: str | None = None,
    filename: str | None = None,
    title: str | None = None,
    external_id: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    train: Literal["auto", "never"] | None = None,
    preset: Preset | None = None,
    idempotency_key: str | None = None,
) -> Flow[Document]:
    """Upload one document: the file at `path`, the bytes `content` or the string `text`, and give exactly one of the three.

    The same bytes again give the document that exists. An Idempotency-Key is made where none is given, so that repeating a lost
    upload never makes a second document.
    """
    if sum(source is not None for source in (path, content, text)) != 1:
        raise ValueError("give exactly one of path, content and text")
    given = _given(title=title, external_id=external_id, train=train, preset=preset)
    headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
    post = Call(method="POST", path="/documents", headers=headers, repeatable=True)
    if text is not None:
        return (yield from one(Document, post.with_(json=_given(text=text, metadata=metadata, **given))))
    form = _given(metadata=json.dumps(metadata) if metadata is not None else None, **given)
    return (yield from one(Document, post.with_(form=form, file=_file(path, content, filename))))


def document(document_id: str) -> Flow[Document]:
    """Raises NotFound for an absent, deleted or foreign document."""
    return (yield from one(Document, Call(method="GET", path=_document(document_id), repeatable=True)))


def documents(*, status: str | None = None, order: Literal["asc", "desc"] | None = None, page_size: int = 50) -> StreamFlow[Document]:
    """All documents, page after page."""
    params = _given(status=status, order=order, limit=str(page_size))
    while True:
        page = yield from _json(Call(method="GET", path="/documents", params=params, repeatable=True))
        for item in page["items"]:
            yield Emit(parse(Document, item))
        if not page.get("next"):
            return
        params["after"] = page["next"]


def wait(document_id: str, *, until: Literal["retrieval_ready", "ready"] = "ready", timeout: float | None = None) -> Flow[Document]:
    """Wait until the document can be asked by retrieval, or has its module. Raises DocumentFailed when it never will, WaitTimeout
    after `timeout` seconds (the work goes on)."""
    deadline = None if timeout is None else time.monotonic() + timeout
    known = yield from document(document_id)
    while not known.reached(until):
        if known.settled:
            raise failure_of(known)
        seconds = LONG_POLL_SECONDS if deadline is None else min(LONG_POLL_SECONDS, deadline - time.monotonic())
        if seconds <= 0:
            raise WaitTimeout(f"{document_id} is {known.status} after {timeout:g} s")
        known = yield from _changed(known, seconds)
    return known


def cancel(document_id: str) -> Flow[Document]:
    """Stop the document's ingest or training."""
    return (yield from one(Document, Call(method="POST", path=f"{_document(document_id)}/cancel", repeatable=True)))


def retry(document_id: str) -> Flow[Document]:
    """Start what failed or was cancelled again."""
    return (yield from one(Document, Call(method="POST", path=f"{_document(document_id)}/retry")))


def train(
    document_id: str, *, preset: Preset | None = None, recipe: Mapping[str, float | int | str] | None = None, seed: int | None = None
) -> Flow[Document]:
    """Train the document's module again, with `preset` instead of the document's, or with fields of its recipe changed. What answers now
    goes on until the new module is published."""
    body = _given(preset=preset, recipe=None if recipe is None else dict(recipe), seed=seed)
    return (yield from one(Document, Call(method="POST", path=f"{_document(document_id)}/modules", json=body)))


def delete(document_id: str) -> Flow[Receipt]:
    """Delete the document, its text, passages and weights, in whatever state it is."""
    return (yield from one(Receipt, Call(method="DELETE", path=_document(document_id), repeatable=True)))


def job(job_id: str) -> Flow[Job]:
    return (yield from one(Job, Call(method="GET", path=f"/jobs/{job_id}", repeatable=True)))


def wait_for_job(job_id: str, *, timeout: float | None = None) -> Flow[Job]:
    """Wait until the job has ended, well or not. Raises WaitTimeout after `timeout` seconds (the work goes on)."""
    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        seconds = LONG_POLL_SECONDS if deadline is None else max(0.0, min(LONG_POLL_SECONDS, deadline - time.monotonic()))
        params = {"wait": f"{seconds:.0f}"}
        call = Call(method="GET", path=f"/jobs/{job_id}", params=params, repeatable=True, timeout=seconds + 30.0)
        known = yield from one(Job, call)
        if not known.under_way:
            return known
        if deadline is not None and time.monotonic() >= deadline:
            raise WaitTimeout(f"{job_id} is {known.state} after {timeout:g} s")


def cancel_job(job_id: str) -> Flow[Job]:
    """Stop a job: at once if it is queued, else within seconds."""
    return (yield from one(Job, Call(method="POST", path=f"/jobs/{job_id}/cancel", repeatable=True)))


class AskOptions(TypedDict, total=False):
    """What is left out takes the server's default. `score` asks for the log-probabilities of given answers as well (the key needs
    the scope `evaluate`)."""

    document_id: str
    document_ids: Sequence[str]
    messages: Sequence[Mapping[str, str]]
    mode: Mode
    fallback: Literal["error", "retrieval"]
    top_k: int
    max_tokens: int
    temperature: float
    seed: int
    score: Sequence[str]


def ask(question: str, **options: Unpack[AskOptions]) -> Flow[Answer]:
    """Ask one document, several, or all that the key may read."""
    body = {"question": question, **options}
    return (yield from one(Answer, Call(method="POST", path="/ask", json=body, repeatable=True)))


def search(query: str, *, document_ids: Sequence[str] | None = None, top_k: int | None = None) -> Flow[list[Citation]]:
    """The passages nearest to `query`, best first."""
    body = _given(query=query, document_ids=document_ids, top_k=top_k)
    found = yield from _json(Call(method="POST", path="/search", json=body, repeatable=True))
    return [parse(Citation, hit) for hit in found["hits"]]


def create_api_key(name: str, scopes: Sequence[str], *, expires_at: float | None = None, tenant: str | None = None) -> Flow[NewApiKey]:
    """A new key; its secret is in the answer and nowhere else. Only the operator may name a tenant that is not the caller's."""
    body = _given(name=name, scopes=list(scopes), expires_at=expires_at, tenant=tenant)
    return (yield from one(NewApiKey, Call(method="POST", path="/api-keys", json=body)))


def api_keys(*, tenant: str | None = None) -> Flow[list[ApiKey]]:
    """The keys that are not revoked."""
    listed = yield from _json(Call(method="GET", path="/api-keys", params=_given(tenant=tenant), repeatable=True))
    return [parse(ApiKey, item) for item in listed["items"]]


def delete_api_key(key_id: str) -> Flow[None]:
    """Revoke a key at once."""
    yield from send(Call(method="DELETE", path=f"/api-keys/{key_id}", repeatable=True))


def ready() -> Flow[bool]:
    """Whether the server answers and can serve. False for one that is still starting; raises ApiError where waiting will not help."""
    try:
        yield from send(Call(method="GET", path="/health/ready", timeout=10.0))
    except ConnectionFailed:
        return False
    except ApiError as error:
        if not worth_repeating(error):
            raise
        return False
    return True


def failure_of(settled: Document) -> DocumentFailed:
    """Why a settled document has no module."""
    error = settled.error or (settled.job.error if settled.job else None)
    if error is not None:
        return DocumentFailed(settled.id, error.code, error.message)
    return DocumentFailed(settled.id, settled.status, f"the document is {settled.status} and no job is under way")


def one(model: type[V], call: Call) -> Flow[V]:
    return parse(model, (yield from _json(call)))


def parse(model: type[V], data: object) -> V:
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise UnexpectedResponse(f"the server's {model.__name__} is not one: {error}") from error


def _json(call: Call) -> Flow[Any]:
    return _decode((yield from send(call)))


def _decode(reply: Reply) -> Any:
    try:
        return json.loads(reply.body)
    except ValueError as error:
        raise UnexpectedResponse(f"the server answered {reply.status} with something that is not JSON") from error


def _changed(known: Document, seconds: float) -> Flow[Document]:
    """The document once its row version differs from `known`'s, or as it is after `seconds`."""
    call = Call(method="GET", path=_document(known.id), params={"wait": f"{seconds:.0f}"}, repeatable=True, timeout=seconds + 30.0)
    reply = yield from send(call.with_(headers={"If-None-Match": f'"{known.row_version}"'}))
    return known if reply.status == 304 else parse(Document, _decode(reply))


def _given(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _document(document_id: str) -> str:
    return f"/documents/{document_id}"


def _file(path: str | Path | None, content: bytes | None, filename: str | None) -> File:
    if path is None:
        assert content is not None
        return File(name=filename or "document", open=lambda: io.BytesIO(content))
    source = Path(path)
    return File(name=filename or source.name, open=lambda: source.open("rb"))
