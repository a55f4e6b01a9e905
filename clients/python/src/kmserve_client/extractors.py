"""The operations of knowledge extractors, each a `Flow` like those in `operations.py`. Knows no sockets."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

from kmserve_client.effects import Call, File, Flow
from kmserve_client.models import Extractor, Extractors, Job, Switched
from kmserve_client.operations import one
from kmserve_client.retries import send

_PATH: Final = "/extractors"
Start = Literal["active", "nothing"]


def train_extractor(
    questions: Sequence[Mapping[str, Any]] | None = None,
    *,
    path: str | Path | None = None,
    name: str | None = None,
    owner: str | None = None,
    documents: Sequence[str] | None = None,
    recipe: Mapping[str, float | int | str | bool] | None = None,
    start: Start | None = None,
    activate: bool = False,
    seed: int | None = None,
    idempotency_key: str | None = None,
) -> Flow[Job]:
    """Start training an extractor on questions, each `{"document_id", "question", "answer" or "answers"}`: given as a list, or as the file
    of JSON lines at `path`. Follow the job with `wait_for_job`; it names the extractor then.

    `start`: what training begins from, the `active` extractor or `nothing`; by default the active one if it fits the recipe.
    An Idempotency-Key is made where none is given, so that repeating a lost request never starts a second training.
    """
    if (questions is None) == (path is None):
        raise ValueError("give exactly one of questions and path")
    given = {"name": name, "owner": owner, "documents": documents, "recipe": recipe, "start": start, "seed": seed}
    fields = {field: value for field, value in {**given, "activate": activate or None}.items() if value is not None}
    headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
    post = Call(method="POST", path=_PATH, headers=headers, repeatable=True)
    if path is None:
        return (yield from one(Job, post.with_(json={"questions": list(questions or ()), **fields})))
    form = {field: value if isinstance(value, str) else json.dumps(value) for field, value in fields.items()}
    source = Path(path)
    return (yield from one(Job, post.with_(form=form, file=File(name=source.name, open=lambda: source.open("rb")))))


def extractors() -> Flow[Extractors]:
    """Yours and the system's, newest first, and the trainings of yours that are under way."""
    return (yield from one(Extractors, Call(method="GET", path=_PATH, repeatable=True)))


def extractor(extractor_id: str) -> Flow[Extractor]:
    """Raises NotFound for an absent, deleted or foreign one."""
    return (yield from one(Extractor, Call(method="GET", path=f"{_PATH}/{extractor_id}", repeatable=True)))


def activate_extractor(extractor_id: str) -> Flow[Switched]:
    """Let it answer from the next question on; `retraining` says how many documents are trained again for it."""
    return (yield from one(Switched, Call(method="POST", path=f"{_PATH}/{extractor_id}/activate", repeatable=True)))


def deactivate_extractor(extractor_id: str) -> Flow[Switched]:
    """Let its owner have no active extractor."""
    return (yield from one(Switched, Call(method="POST", path=f"{_PATH}/{extractor_id}/deactivate", repeatable=True)))


def delete_extractor(extractor_id: str) -> Flow[None]:
    """Delete it with its weights. Raises Conflict while it is active, or modules wear its lora and no other one is over that."""
    yield from send(Call(method="DELETE", path=f"{_PATH}/{extractor_id}", repeatable=True))
