"""Rows that tests of jobs start from: a tenant with documents that have one revision each."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

from sqlalchemy import insert, select, update
from sqlalchemy.orm import Session

from server.db import jobs
from server.db.clock import db_now
from server.db.tables import Document, DocumentStatus, Extractor, Job, JobKind, Revision, Tenant


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


def extractor(session: Session, owner: str, lora: str, *, active: bool = True) -> None:
    """An extractor that has no files."""
    named = {"id": f"ext_{lora[:4]}{owner}", "owner": owner, "lora_digest": lora, "composition_digest": f"c{lora[1:]}"}
    proof = {"manifest_sha256": "e" * 64, "base_fingerprint": "f" * 64, "scope": "answer"}
    session.execute(insert(Extractor).values(**named, **proof, active=active, created_at=db_now()))
