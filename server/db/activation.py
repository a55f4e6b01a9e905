"""Switching an owner's active extractor, and the re-training that follows from another lora.

Until a document is trained again, its module is served over the lora that it wears (`server.modules.composition.extractor_for`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sqlalchemy import ColumnElement, and_, or_, select, update
from sqlalchemy.orm import Session, aliased

from server.db import extractors, jobs
from server.db.extractors import SYSTEM_OWNER
from server.db.tables import Document, Extractor, Job, JobKind, JobState, Module, Revision, Tenant

RETRAIN_PRIORITY: Final = -10
"""Nobody waits for it as for a new document: the old module answers meanwhile."""
REASON: Final = "extractor_changed"
_ASKED: Final = ("preset", "recipe", "seed")
"""Of a module's training: it is trained again as it was."""


def switch(session: Session, owner: str, extractor_id: str | None, *, wearing: bool, max_attempts: int) -> int:
    """Make one of the owner's extractors its active one, or none of them; how many trainings that queued. Ring for them afterwards.

    All at once for whoever looks: the transaction's other end sees the new one alone. The caller has seen that the extractor is the
    owner's. Where the tenants that it serves get another lora by this, those of their documents are trained again whose module wears
    another one, or, if trainings are `wearing` the active one, is being trained while wearing it.
    """
    extractors.lock(session, owner)
    before = _lora(session, owner)
    newer = {"row_version": Extractor.row_version + 1}
    mine = update(Extractor).where(Extractor.owner == owner, Extractor.deleted_at.is_(None))
    session.execute(mine.where(Extractor.active, Extractor.id != (extractor_id or "")).values(active=False, **newer))
    session.execute(mine.where(~Extractor.active, Extractor.id == extractor_id).values(active=True, **newer))
    after = _lora(session, owner)
    if after is None or after == before:
        return 0
    return sum(_retrain(session, tenant, before if wearing else None, after, max_attempts) for tenant in _served(session, owner))


def _lora(session: Session, owner: str) -> str | None:
    extractor = extractors.active(session, owner)
    return None if extractor is None else extractor.lora_digest


def _served(session: Session, owner: str) -> Sequence[str]:
    """The tenants that an owner's active extractor serves; the system's serves those that have none of their own."""
    if owner != SYSTEM_OWNER:
        return [owner]
    own = select(Extractor.id).where(Extractor.owner == Tenant.id, Extractor.active)
    return session.scalars(select(Tenant.id).where(~own.exists()).order_by(Tenant.id)).all()


def _retrain(session: Session, tenant_id: str, before: str | None, lora: str, max_attempts: int) -> int:
    """`before`: what a training that is running wears, None for nothing."""
    stale = and_(Module.wears.is_not(None), Module.wears != lora)
    # What is being trained wears the lora that was active when it was started.
    due = stale if before is None else or_(stale, _has_job(JobState.RUNNING))
    made_by = aliased(Job)
    wanted = (
        select(Document.id, Document.revision_id, Document.preset, made_by.params)
        .join(Revision, and_(Revision.id == Document.revision_id, Revision.tenant_id == tenant_id))
        .outerjoin(Module, and_(Module.id == Document.module_id, Module.tenant_id == tenant_id))
        .outerjoin(made_by, and_(made_by.id == Module.job_id, made_by.tenant_id == tenant_id))
        .where(Document.tenant_id == tenant_id, Document.deleted_at.is_(None), Revision.indexed_at.is_not(None))
        .where(due, ~_has_job(JobState.QUEUED))
        .order_by(Document.created_at, Document.id)
    )
    found = session.execute(wanted).all()
    for document_id, revision_id, preset, params in found:
        asked = {name: params[name] for name in _ASKED if name in (params or {})}
        jobs.enqueue(
            session,
            tenant_id=tenant_id,
            document_id=document_id,
            revision_id=revision_id,
            kind=JobKind.TRAIN,
            params={"preset": preset, **asked, "reason": REASON},
            priority=RETRAIN_PRIORITY,
            max_attempts=max_attempts,
        )
    return len(found)


def _has_job(state: JobState) -> ColumnElement[bool]:
    """Whether the document's current revision has a training in that state; one that is queued wears what is active when it starts."""
    mine = (Job.document_id == Document.id, Job.revision_id == Document.revision_id, Job.tenant_id == Document.tenant_id)
    return select(Job.id).where(*mine, Job.kind == JobKind.TRAIN, Job.state == state).exists()
