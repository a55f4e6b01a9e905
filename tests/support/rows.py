"""Rows that tests of jobs start from: a tenant with documents that have one revision each."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

from sqlalchemy import insert, select, update
from sqlalchemy.orm import Session

from server.db import documents, jobs, material, modules
from server.db.clock import db_now
from server.db.material import Answered
from server.db.modules import NewModule
from server.db.tables import Document, DocumentStatus, Extractor, Job, JobKind, Module, Revision, Tenant


@dataclass(frozen=True, kw_only=True)
class Uploaded:
    tenant_id: str
    document_id: str
    revision_id: str


def upload(session: Session, tenant_id: str = "acme", status: DocumentStatus = DocumentStatus.RETRIEVAL_READY) -> Uploaded:
    """A document with its first revision; the tenant is made when missing."""
    if session.scalar(select(Tenant.id).where(Tenant.id == tenant_id)) is None:
        session.execute(insert(Tenant).values(id=tenant_id, created_at=db_now()))
    document_id, revision_id = f"doc_{uuid.uuid4().hex}", f"rev_{uuid.uuid4().hex}"
    times = {"created_at": db_now(), "updated_at": db_now()}
    plain = {"title": "Leave policy", "filename": "policy.md", "meta": {}, "train": "auto", "preset": "quick"}
    row = {"id": document_id, "tenant_id": tenant_id, "revision_id": revision_id, "content_sha256": uuid.uuid4().hex, "row_version": 1}
    session.execute(insert(Document).values(status=status, **row, **plain, **times))
    add_revision(session, tenant_id, document_id, revision_id, 1)
    return Uploaded(tenant_id=tenant_id, document_id=document_id, revision_id=revision_id)


def add_revision(session: Session, tenant_id: str, document_id: str, revision_id: str, number: int) -> None:
    """Another content; it becomes the document's current one."""
    blob = f"{tenant_id}/{document_id}/{revision_id}"
    row = {"id": revision_id, "tenant_id": tenant_id, "document_id": document_id, "number": number, "blob": blob}
    session.execute(insert(Revision).values(sha256=uuid.uuid4().hex, size=10, created_at=db_now(), **row))
    mine = update(Document).where(Document.id == document_id, Document.tenant_id == tenant_id)
    session.execute(mine.values(revision_id=revision_id))


def training(session: Session, document: Uploaded, **options: Any) -> Job:
    """A queued training of the document's first revision."""
    return jobs.enqueue(session, **vars(document), kind=JobKind.TRAIN, **{"params": {"preset": "quick"}, **options})


def extractor_training(session: Session, *learned: Uploaded, owner: str = "acme", **params: Any) -> Job:
    """A queued training of an extractor, on one question about each of these documents of one tenant."""
    wanted = {"owner": owner, "name": None, "recipe": {}, "seed": 0, "activate": False, **params}
    job = jobs.enqueue(session, tenant_id=learned[0].tenant_id, kind=JobKind.EXTRACTOR, params=wanted)
    questions = [Answered(document_id=each.document_id, question="How many days?", answers=("31",)) for each in learned]
    material.add(session, job, {each.document_id: each.revision_id for each in learned}, questions)
    return job


def publish_module(session: Session, document: Uploaded, *, wears: str | None) -> Module:
    """A module without files that answers for the document from now on, which is indexed and ready."""
    proof = {"digest": uuid.uuid4().hex * 2, "manifest_sha256": "e" * 64, "base_fingerprint": "f" * 64}
    new = NewModule(**vars(document), **proof, scope="all", gate={}, job_id="job_x", wears=wears)
    module = modules.insert_version(session, new)
    modules.activate(session, module)
    mine = (Revision.id == document.revision_id, Revision.tenant_id == document.tenant_id)
    session.execute(update(Revision).where(*mine).values(indexed_at=db_now()))
    documents.set_status(session, document.document_id, document.tenant_id, DocumentStatus.READY)
    return module


def document_row(session: Session, document: Uploaded) -> Document:
    mine = select(Document).where(Document.id == document.document_id, Document.tenant_id == document.tenant_id)
    return session.scalars(mine.execution_options(populate_existing=True)).one()


def job_row(session: Session, job_id: str) -> Job:
    return session.scalars(select(Job).where(Job.id == job_id).execution_options(populate_existing=True)).one()


def skip_wait(session: Session, job_id: str) -> None:
    """As if the pause after a failed attempt were over."""
    session.execute(update(Job).where(Job.id == job_id, Job.not_before.is_not(None)).values(not_before=db_now()))


def expire_lease(session: Session, job_id: str) -> None:
    """As if the worker had not been heard of for a while."""
    session.execute(update(Job).where(Job.id == job_id).values(lease_until=db_now() - 1))


def extractor(session: Session, owner: str, lora: str, *, active: bool = True, **changes: Any) -> str:
    """An extractor that has no files; its id."""
    named = {"id": f"ext_{lora[:4]}{owner}", "owner": owner, "lora_digest": lora, "composition_digest": f"c{lora[1:]}"}
    proof = {"manifest_sha256": "e" * 64, "base_fingerprint": "f" * 64, "scope": "answer"}
    row = {**named, **proof, **changes}
    session.execute(insert(Extractor).values(**row, active=active, created_at=db_now()))
    return str(row["id"])
