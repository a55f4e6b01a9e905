"""A revision's passages and what ingest found out about it. Knows nothing of vectors or of the files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import delete, insert, select, update
from sqlalchemy.orm import Session

from server.db.clock import db_now
from server.db.tables import Job, Passage, Revision


@dataclass(frozen=True, kw_only=True)
class NewPassage:
    id: str
    ordinal: int
    text: str
    page: int | None
    char_start: int
    char_end: int
    tokens: int


def replace(session: Session, job: Job, passages: Sequence[NewPassage]) -> None:
    """Make these the passages of the job's revision, in place of those it had."""
    delete_revision(session, job.tenant_id, job.subject.revision_id)
    session.execute(insert(Passage), [{**vars(job.subject), **vars(passage)} for passage in passages])


def describe_revision(session: Session, job: Job, *, media_type: str, pages: int | None, tokens: int) -> None:
    """Record what the job's revision turned out to be, and that it is indexed from now on."""
    mine = update(Revision).where(Revision.id == job.revision_id, Revision.tenant_id == job.tenant_id)
    session.execute(mine.values(media_type=media_type, pages=pages, tokens=tokens, indexed_at=db_now()))


def revision(session: Session, tenant_id: str, revision_id: str) -> Revision:
    return session.scalars(select(Revision).where(Revision.id == revision_id, Revision.tenant_id == tenant_id)).one()


def delete_revision(session: Session, tenant_id: str, revision_id: str) -> None:
    session.execute(delete(Passage).where(Passage.tenant_id == tenant_id, Passage.revision_id == revision_id))
