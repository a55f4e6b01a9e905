"""What the training of an extractor learns from: revisions of several documents, and questions about them with their answers.

Questions are a tenant's text. They go when their job has ended, or with their document; which revisions an extractor was trained on stays
known as long as it is there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, delete, insert, or_, select
from sqlalchemy.orm import Session

from server.db.extractors import SYSTEM_OWNER
from server.db.tables import Extractor, ExtractorDocument, ExtractorQuestion, Job, JobState

_ENDED = (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)


@dataclass(frozen=True, kw_only=True)
class Answered:
    """A question about a document, with at least one right answer."""

    document_id: str
    question: str
    answers: tuple[str, ...]


def add(session: Session, job: Job, revisions: Mapping[str, str], questions: Sequence[Answered]) -> None:
    """`revisions`: document -> its revision to learn from. Every question is about one of them."""
    _learn_from(session, job, revisions)
    mine = {"job_id": job.id, "tenant_id": job.tenant_id}
    session.execute(
        insert(ExtractorQuestion),
        [{**mine, **vars(asked), "answers": list(asked.answers), "ordinal": ordinal} for ordinal, asked in enumerate(questions)],
    )


def inherit(session: Session, job: Job, start: str) -> None:
    """What the extractor of composition `start` has learned from is in the weights of the one that began from it too: note it beside what
    the job itself learns from. Of the job's tenant alone, as everything here: what else the system's learned from is the operator's."""
    made_start = select(Extractor.job_id).where(
        Extractor.composition_digest == start, Extractor.owner.in_((job.params["owner"], SYSTEM_OWNER))
    )
    earlier = select(ExtractorDocument.document_id, ExtractorDocument.revision_id).where(
        ExtractorDocument.job_id.in_(made_start), ExtractorDocument.tenant_id == job.tenant_id
    )
    own = revisions(session, job.tenant_id, job.id)
    if learned := {document: revision for document, revision in session.execute(earlier) if document not in own}:
        _learn_from(session, job, learned)


def _learn_from(session: Session, job: Job, revisions: Mapping[str, str]) -> None:
    mine = {"job_id": job.id, "tenant_id": job.tenant_id}
    rows = [{**mine, "document_id": document, "revision_id": revision} for document, revision in revisions.items()]
    session.execute(insert(ExtractorDocument), rows)


def revisions(session: Session, tenant_id: str, job_id: str) -> dict[str, str]:
    """Document -> revision, of documents deleted since too; empty for another tenant's job."""
    mine = select(ExtractorDocument.document_id, ExtractorDocument.revision_id).where(
        ExtractorDocument.job_id == job_id, ExtractorDocument.tenant_id == tenant_id
    )
    rows = session.execute(mine)
    return dict(sorted((document, revision) for document, revision in rows))


def questions(session: Session, tenant_id: str, job_id: str) -> list[Answered]:
    """In their order."""
    mine = select(ExtractorQuestion).where(ExtractorQuestion.job_id == job_id, ExtractorQuestion.tenant_id == tenant_id)
    return [
        Answered(document_id=row.document_id, question=row.question, answers=tuple(row.answers))
        for row in session.scalars(mine.order_by(ExtractorQuestion.ordinal))
    ]


def concerns(tenant_id: str, document_id: str) -> ColumnElement[bool]:
    """Of jobs: those about the document, and those that learn from it among others."""
    learning = select(ExtractorDocument.job_id).where(
        ExtractorDocument.tenant_id == tenant_id, ExtractorDocument.document_id == document_id
    )
    return or_(Job.document_id == document_id, Job.id.in_(learning))


def trained_on(session: Session, tenant_id: str, document_id: str) -> list[Extractor]:
    """The extractors that learned from the document and are not deleted, the system's among them, oldest first."""
    of_theirs = select(ExtractorDocument.job_id).where(
        ExtractorDocument.tenant_id == tenant_id, ExtractorDocument.document_id == document_id
    )
    trained = select(Extractor).where(Extractor.job_id.in_(of_theirs), Extractor.deleted_at.is_(None))
    return list(session.scalars(trained.order_by(Extractor.created_at, Extractor.id)))


def forget_document(session: Session, tenant_id: str, document_id: str) -> None:
    """Remove the questions about a document."""
    about = delete(ExtractorQuestion).where(ExtractorQuestion.tenant_id == tenant_id, ExtractorQuestion.document_id == document_id)
    session.execute(about)


def sweep(session: Session) -> None:
    """Remove the questions of jobs that have ended, and what those learned from that published nothing."""
    ended = select(Job.id).where(Job.state.in_(_ENDED))
    # tenant-free: whoever's they are, they have served their purpose
    session.execute(delete(ExtractorQuestion).where(ExtractorQuestion.job_id.in_(ended)))
    published: Any = select(Extractor.job_id).where(Extractor.job_id.is_not(None))
    unpublished = (ExtractorDocument.job_id.in_(ended), ExtractorDocument.job_id.not_in(published))
    # tenant-free: no extractor has learned from them
    session.execute(delete(ExtractorDocument).where(*unpublished))
