"""The rules of extractors: who may train and switch which, and from what they learn. Deleting is in a file of its own.

Everybody sees his own and the system's; the system's are changed by the operator alone, and are trained on the operator's own documents.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from server import audit
from server.db import activation, jobs, material
from server.db.extractors import SYSTEM_OWNER
from server.db.tables import JobKind
from server.documents import idempotency
from server.documents.idempotency import Reservation
from server.errors import DocumentNotFound, ExtractorNotServable, Forbidden, InvalidInput
from server.extractors import repository
from server.extractors.repository import Found
from server.extractors.requests import Asked, Wanted, wrong_lines
from server.extractors.schemas import MAX_DOCUMENTS, Extractor, ExtractorList, Switched, TrainedOn
from server.extractors.starts import check_start
from server.jobs.schemas import Job
from server.modules.store import ModuleStore
from server.parts import Parts
from server.security import Caller, KeyScope
from server.settings import Settings
from server.transactions import reading, writing


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a request to train is answered: 202 and the job."""

    status: int
    body: dict[str, Any]

    @property
    def location(self) -> str:
        return f"/jobs/{self.body['id']}"


async def train(parts: Parts, caller: Caller, wanted: Wanted, reservation: Reservation | None) -> Outcome:
    """Queue the training. Raises Forbidden, InvalidQuestions, DocumentNotFound, InvalidInput."""
    rank = wanted.fields.recipe.rank if wanted.fields.recipe is not None else None
    if rank is not None and rank > parts.settings.max_rank:
        raise InvalidInput(f"this server takes extractors of a rank of at most {parts.settings.max_rank} (KMSERVE_MAX_RANK)")
    await check_start(parts, _owner(caller, wanted.fields.owner), wanted.fields)
    outcome = await writing(parts.database, _train, caller, wanted, reservation, parts.settings.max_attempts)
    parts.tasks.start(asyncio.to_thread(parts.ring))
    return outcome


async def show(parts: Parts, caller: Caller, extractor_id: str) -> Extractor:
    """Raises ExtractorNotFound."""
    return _shown(await reading(parts.database, repository.find, caller.tenant, extractor_id))


async def listed(parts: Parts, caller: Caller) -> ExtractorList:
    return await reading(parts.database, _listed, caller.tenant)


async def activate(parts: Parts, caller: Caller, extractor_id: str) -> Switched:
    """Raises ExtractorNotFound, Forbidden, ExtractorNotServable, ObjectStoreUnavailable, Starting."""
    fingerprint = parts.models.get().base_fingerprint
    found = await reading(parts.database, changeable, caller, extractor_id)
    await asyncio.to_thread(_check_servable, parts.modules, found, fingerprint)
    return await _switch(parts, caller, extractor_id, active=True)


async def deactivate(parts: Parts, caller: Caller, extractor_id: str) -> Switched:
    """Raises ExtractorNotFound, Forbidden."""
    return await _switch(parts, caller, extractor_id, active=False)


async def _switch(parts: Parts, caller: Caller, extractor_id: str, *, active: bool) -> Switched:
    switched = await writing(parts.database, _switch_rows, caller, extractor_id, active, parts.settings)
    if switched.retraining:
        parts.tasks.start(asyncio.to_thread(parts.ring))
    return switched


def _train(session: Session, caller: Caller, wanted: Wanted, reservation: Reservation | None, max_attempts: int) -> Outcome:
    owner = _owner(caller, wanted.fields.owner)
    chosen = _chosen(wanted)
    revisions = _revisions(session, caller.tenant, wanted, chosen)
    fields = wanted.fields
    recipe = {} if fields.recipe is None else fields.recipe.changed()
    plain = {name: getattr(fields, name) for name in ("name", "seed", "start", "activate")}
    params = {"owner": owner, "recipe": recipe, **plain}
    job = jobs.enqueue(session, tenant_id=caller.tenant, kind=JobKind.EXTRACTOR, params=params, max_attempts=max_attempts)
    material.add(session, job, revisions, [asked.question.answered() for asked in chosen])
    audit.record(session, caller.tenant, "train_extractor", job=job.id, owner=owner, questions=len(chosen), documents=len(revisions))
    outcome = Outcome(status=202, body=Job.of(job).model_dump(mode="json"))
    if reservation is not None:
        sha256 = wanted.request_sha256()
        idempotency.finish(session, reservation, request_sha256=sha256, status=outcome.status, response=outcome.body)
    return outcome


def _owner(caller: Caller, named: str | None) -> str:
    """Raises Forbidden."""
    if named is None or named == caller.tenant:
        return caller.tenant
    if named == SYSTEM_OWNER and caller.operator:
        return SYSTEM_OWNER
    raise Forbidden(
        "only the operator trains and changes what is not its own tenant's, and that is the system's alone", scope=KeyScope.ADMIN
    )


def _chosen(wanted: Wanted) -> list[Asked]:
    """The questions to learn from. Raises InvalidInput for a document that there is no question about."""
    if wanted.fields.documents is None:
        return list(wanted.questions)
    named = set(wanted.fields.documents)
    chosen = [asked for asked in wanted.questions if asked.question.document_id in named]
    if silent := named - {asked.question.document_id for asked in chosen}:
        raise InvalidInput(f"there is no question about {len(silent)} of the `documents`; name only those to learn from")
    return chosen


def _revisions(session: Session, tenant_id: str, wanted: Wanted, chosen: list[Asked]) -> dict[str, str]:
    """Document -> its current revision. Raises InvalidInput, InvalidQuestions, DocumentNotFound."""
    ids = {asked.question.document_id for asked in chosen}
    if len(ids) > MAX_DOCUMENTS:
        raise InvalidInput(f"the questions are about {len(ids)} documents; an extractor learns from at most {MAX_DOCUMENTS}")
    found = repository.lock_material(session, tenant_id, ids)
    if wanted.fields.documents is not None and not found.keys() >= set(wanted.fields.documents):
        raise DocumentNotFound("no such document")
    wrong = [(asked.line, "there is no such document") for asked in chosen if asked.question.document_id not in found]
    unread = {document for document, each in found.items() if not each.indexed}
    wrong += [(asked.line, "the document is not indexed yet; wait for its job") for asked in chosen if asked.question.document_id in unread]
    if wrong:
        raise wrong_lines(sorted(wrong))
    return {document: each.revision_id for document, each in found.items()}


def changeable(session: Session, caller: Caller, extractor_id: str) -> Found:
    """One that the caller may change. Raises ExtractorNotFound, Forbidden."""
    found = repository.find(session, caller.tenant, extractor_id)
    _owner(caller, found.extractor.owner)
    return found


def _check_servable(store: ModuleStore, found: Found, fingerprint: str) -> None:
    """Raises ExtractorNotServable: once active, it would stop every answer that wears it. Raises ObjectStoreUnavailable where only that
    could say."""
    extractor = found.extractor
    if extractor.base_fingerprint != fingerprint:
        raise ExtractorNotServable("the extractor was trained for another base model; train one for this model")
    if not store.has(store.extractor_path(extractor.owner, extractor.composition_digest), extractor.manifest_sha256):
        raise ExtractorNotServable("the extractor's files are not there; make their store reachable, or train it again")


def _switch_rows(session: Session, caller: Caller, extractor_id: str, active: bool, settings: Settings) -> Switched:
    extractor = changeable(session, caller, extractor_id).extractor
    retraining = 0
    if active or extractor.active:
        chosen = extractor.id if active else None
        wearing, attempts = settings.modules_wear_extractor, settings.max_attempts
        retraining = activation.switch(session, extractor.owner, chosen, wearing=wearing, max_attempts=attempts)
    found = repository.find(session, caller.tenant, extractor_id)
    action = "activate_extractor" if active else "deactivate_extractor"
    audit.record(session, caller.tenant, action, extractor=extractor_id, owner=extractor.owner, retraining=retraining)
    return Switched(**_members(found), retraining=retraining)


def _listed(session: Session, tenant_id: str) -> ExtractorList:
    items = [_shown(found) for found in repository.listed(session, tenant_id)]
    return ExtractorList(items=items, jobs=[Job.of(job) for job in repository.jobs_under_way(session, tenant_id)])


def _shown(found: Found) -> Extractor:
    return Extractor(**_members(found))


def _members(found: Found) -> dict[str, Any]:
    row = found.extractor
    names = ("id", "owner", "name", "active", "base_fingerprint", "scope", "gate", "row_version", "created_at")
    return {
        **{name: getattr(row, name) for name in names},
        "lora": row.lora_digest,
        "composition": row.composition_digest,
        "documents": [TrainedOn(document_id=document, revision_id=revision) for document, revision in found.revisions.items()],
        "worn_by": found.worn_by,
        "job_id": row.job_id if found.revisions else None,
    }
