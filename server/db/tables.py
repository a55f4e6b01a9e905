"""The tables. Every row that belongs to a tenant carries `tenant_id`; times are seconds since the epoch on the database's clock."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar

from sqlalchemy import JSON, BigInteger, Double, ForeignKey, Index, Integer, String, Text, UniqueConstraint, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    type_annotation_map: ClassVar[dict[Any, Any]] = {dict[str, Any]: JSON, list[str]: JSON, float: Double, int: BigInteger, str: String}


class DocumentStatus(StrEnum):
    """ingesting -> retrieval_ready -> training -> ready; ingesting -> failed; training -> retrieval_ready (failed or cancelled job)
    or ready (an older module stays). A cancelled ingest is `cancelled`. `retry` leads failed/cancelled back to ingesting."""

    INGESTING = "ingesting"
    RETRIEVAL_READY = "retrieval_ready"
    TRAINING = "training"
    READY = "ready"
    FAILED = "failed"
    CANCELLED = "cancelled"


class JobKind(StrEnum):
    """An ingest and a training are about one document, the training of an extractor about several."""

    INGEST = "ingest"
    TRAIN = "train"
    EXTRACTOR = "extractor"


class JobState(StrEnum):
    """queued -> running -> succeeded | failed | cancelled; running -> queued (lease expired, SIGTERM); queued -> cancelled."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class ModuleState(StrEnum):
    PUBLISHED = "published"
    QUARANTINED = "quarantined"


class Tenant(Base):
    __tablename__ = "tenants"
    id: Mapped[str] = mapped_column(primary_key=True)
    created_at: Mapped[float]


class ApiKey(Base):
    """`prefix` is public and looked up; `hash` is HMAC-SHA256 of the whole key under the server's secret."""

    __tablename__ = "api_keys"
    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), index=True)
    name: Mapped[str]
    prefix: Mapped[str] = mapped_column(unique=True)
    hash: Mapped[str]
    scopes: Mapped[list[str]]
    created_at: Mapped[float]
    expires_at: Mapped[float | None]
    revoked_at: Mapped[float | None]


class Document(Base):
    """`content_sha256` is the current revision's; unique among a tenant's live documents. `deleted_at` is the tombstone."""

    __tablename__ = "documents"
    __table_args__ = (
        Index(
            "uq_documents_live_content",
            "tenant_id",
            "content_sha256",
            unique=True,
            sqlite_where=text("deleted_at IS NULL"),
            postgresql_where=text("deleted_at IS NULL"),
        ),
        Index("ix_documents_tenant_created", "tenant_id", "created_at", "id"),
    )
    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    external_id: Mapped[str | None]
    title: Mapped[str]
    filename: Mapped[str | None]
    meta: Mapped[dict[str, Any]]
    train: Mapped[str]
    preset: Mapped[str]
    status: Mapped[str]
    error: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    content_sha256: Mapped[str]
    revision_id: Mapped[str]
    module_id: Mapped[str | None]
    row_version: Mapped[int] = mapped_column(default=1)
    created_at: Mapped[float]
    updated_at: Mapped[float]
    deleted_at: Mapped[float | None]


class Revision(Base):
    """One uploaded content. `number` counts from 1 within a document; `blob` is the key of the bytes in the blob store."""

    __tablename__ = "revisions"
    __table_args__ = (UniqueConstraint("document_id", "number"),)
    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    document_id: Mapped[str] = mapped_column(ForeignKey("documents.id"), index=True)
    number: Mapped[int]
    sha256: Mapped[str]
    size: Mapped[int]
    blob: Mapped[str]
    media_type: Mapped[str | None]
    pages: Mapped[int | None] = mapped_column(Integer)
    tokens: Mapped[int | None] = mapped_column(Integer)
    indexed_at: Mapped[float | None]
    created_at: Mapped[float]


class Passage(Base):
    """A retrieval unit; `id` is also its point id in the vector index. Spans are in the revision's parsed text; `page` counts from 1."""

    __tablename__ = "passages"
    __table_args__ = (Index("ix_passages_revision", "tenant_id", "revision_id", "ordinal"),)
    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    document_id: Mapped[str] = mapped_column(ForeignKey("documents.id"))
    revision_id: Mapped[str] = mapped_column(ForeignKey("revisions.id"))
    ordinal: Mapped[int]
    text: Mapped[str] = mapped_column(Text)
    page: Mapped[int | None] = mapped_column(Integer)
    char_start: Mapped[int]
    char_end: Mapped[int]
    tokens: Mapped[int]


class Module(Base):
    """A published knowledge module. `digest` and `manifest_sha256` are what the files must prove before they are loaded."""

    __tablename__ = "modules"
    __table_args__ = (UniqueConstraint("document_id", "version"),)
    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    document_id: Mapped[str] = mapped_column(ForeignKey("documents.id"), index=True)
    revision_id: Mapped[str] = mapped_column(ForeignKey("revisions.id"))
    version: Mapped[int]
    digest: Mapped[str]
    manifest_sha256: Mapped[str]
    base_fingerprint: Mapped[str]
    wears: Mapped[str | None]
    scope: Mapped[str]
    gate: Mapped[dict[str, Any]]
    state: Mapped[str]
    state_reason: Mapped[str | None]
    job_id: Mapped[str]
    created_at: Mapped[float]


class Extractor(Base):
    """A published knowledge extractor. `owner` is `system` or a tenant; at most one is active for an owner. What it was trained on are the
    `ExtractorDocument`s of its job. `deleted_at` is the tombstone."""

    __tablename__ = "extractors"
    __table_args__ = (
        Index(
            "uq_extractors_active",
            "owner",
            unique=True,
            sqlite_where=text("active"),
            postgresql_where=text("active"),
        ),
    )
    id: Mapped[str] = mapped_column(primary_key=True)
    owner: Mapped[str]
    lora_digest: Mapped[str]
    composition_digest: Mapped[str]
    manifest_sha256: Mapped[str]
    base_fingerprint: Mapped[str]
    scope: Mapped[str]
    active: Mapped[bool]
    created_at: Mapped[float]
    name: Mapped[str | None]
    job_id: Mapped[str | None] = mapped_column(index=True)
    gate: Mapped[dict[str, Any]] = mapped_column(default=dict)
    row_version: Mapped[int] = mapped_column(default=1)
    deleted_at: Mapped[float | None]


class ExtractorDocument(Base):
    """A revision that an extractor's job learns from. It outlives the document: the extractor was trained on it all the same."""

    __tablename__ = "extractor_documents"
    __table_args__ = (Index("ix_extractor_documents_document", "tenant_id", "document_id"),)
    job_id: Mapped[str] = mapped_column(primary_key=True)
    document_id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    revision_id: Mapped[str]


class ExtractorQuestion(Base):
    """A question with its answers that an extractor's job learns from; gone when the job has ended, or with its document."""

    __tablename__ = "extractor_questions"
    __table_args__ = (Index("ix_extractor_questions_document", "tenant_id", "document_id"),)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    ordinal: Mapped[int] = mapped_column(Integer, primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    document_id: Mapped[str]
    question: Mapped[str] = mapped_column(Text)
    answers: Mapped[list[str]]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """The revision that a job is about."""

    tenant_id: str
    document_id: str
    revision_id: str


class Job(Base):
    """A durable unit of background work; db/jobs.py is its life. `attempt` is the fencing token of every write."""

    __tablename__ = "jobs"
    __table_args__ = (
        Index("ix_jobs_claim", "kind", "state", "priority", "created_at"),
        Index("ix_jobs_turns", "kind", "tenant_id", "started_at"),
    )
    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    document_id: Mapped[str | None] = mapped_column(ForeignKey("documents.id"), index=True)
    revision_id: Mapped[str | None] = mapped_column(ForeignKey("revisions.id"))
    kind: Mapped[str]
    state: Mapped[str]
    stage: Mapped[str | None]
    progress: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    metrics: Mapped[dict[str, Any]]
    error: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    params: Mapped[dict[str, Any]]
    attempt: Mapped[int]
    max_attempts: Mapped[int]
    priority: Mapped[int]
    lease_owner: Mapped[str | None]
    lease_until: Mapped[float | None]
    cancel_requested: Mapped[bool]
    rung_at: Mapped[float | None]
    not_before: Mapped[float | None]
    """A queued job waits until then: its last attempt failed."""
    created_at: Mapped[float]
    started_at: Mapped[float | None]
    finished_at: Mapped[float | None]
    updated_at: Mapped[float]

    @property
    def subject(self) -> Subject:
        """Of an ingest or a training; the training of an extractor has none."""
        assert self.document_id is not None
        assert self.revision_id is not None
        return Subject(tenant_id=self.tenant_id, document_id=self.document_id, revision_id=self.revision_id)


class IdempotencyKey(Base):
    """Written in the same transaction as what it protects; `response` is empty while the first request is in flight."""

    __tablename__ = "idempotency_keys"
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    request_sha256: Mapped[str]
    status: Mapped[int | None] = mapped_column(Integer)
    response: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    created_at: Mapped[float]


class Audit(Base):
    """What was asked of which version; never the question or the answer."""

    __tablename__ = "audit"
    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), index=True)
    request_id: Mapped[str]
    action: Mapped[str]
    document_id: Mapped[str | None]
    detail: Mapped[dict[str, Any]]
    created_at: Mapped[float]
