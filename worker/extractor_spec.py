"""What the trainer of an extractor is told: its documents, the module of each, questions with their answers, and the active extractor."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from server.db import documents, material, modules
from server.db.tables import Job, ModuleState, Passage
from server.modules.store import ModuleStore
from server.settings import Settings
from worker.spec import active_extractor, machine


def build_extractor_spec(session: Session, job: Job, settings: Settings, store: ModuleStore) -> dict[str, Any]:
    """Of the documents' texts only the passages that questions are asked beside. Raises DocumentNotFound when one was deleted meanwhile.

    `extractor` is what training may begin from, and what weights alone are learned over: what is active as the attempt starts. A system's
    extractor begins from the system's active one and no other: one of the tenant's is private.
    """
    start = job.params.get("start")
    revisions = material.revisions(session, job.tenant_id, job.id)
    owner: str = job.params["owner"]
    return {
        "kind": "extractor",
        "job_id": job.id,
        "attempt": job.attempt,
        "owner": owner,
        "seed": job.params.get("seed", 0),
        "recipe": job.params.get("recipe") or {},
        "documents": [_document(session, job.tenant_id, each, revisions[each], store) for each in revisions],
        "questions": [{**vars(asked), "answers": list(asked.answers)} for asked in material.questions(session, job.tenant_id, job.id)],
        "start": start,
        "extractor": None if start == "nothing" else active_extractor(session, owner, store),
        **machine(settings),
    }


def _document(session: Session, tenant_id: str, document_id: str, revision_id: str, store: ModuleStore) -> dict[str, Any]:
    document = documents.get_live(session, tenant_id, document_id)
    passages = select(Passage.text).where(Passage.tenant_id == tenant_id, Passage.revision_id == revision_id).order_by(Passage.ordinal)
    return {
        "document_id": document_id,
        "title": document.title,
        "passages": list(session.scalars(passages)),
        "module": _module(session, tenant_id, document_id, revision_id, store),
    }


def _module(session: Session, tenant_id: str, document_id: str, revision_id: str, store: ModuleStore) -> dict[str, Any] | None:
    """The module that answers for this revision; none of another one, which was trained on another text."""
    module = modules.active(session, tenant_id, document_id)
    if module is None or module.state != ModuleState.PUBLISHED or module.revision_id != revision_id:
        return None
    return {
        "digest": module.digest,
        "manifest_sha256": module.manifest_sha256,
        "directory": str(store.path(tenant_id, document_id, module.digest)),
        "scope": module.scope,
        "wears": module.wears,
    }
