"""Durable jobs: the row is the truth, and every function here is one step of its life inside the caller's transaction.

    enqueue -> claim -> heartbeat, progress, ... -> succeed | fail | cancelled | release | retry

`attempt` is the fencing token: what a worker writes is conditional on the row being `running` under the attempt it claimed, else
`JobLost` and nothing is written. Leases are compared on the database's clock only. Where a step also moves the document's status, the
document's row is locked before the job's (see documents.py). Knows nothing of brokers, processes or what a job does.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import ColumnElement, Update, and_, case, func, insert, select, update
from sqlalchemy.orm import Session, aliased

from server.db import documents
from server.db.clock import db_now
from server.db.tables import Document, DocumentStatus, Job, JobKind, JobState
from server.errors import AttemptsExhausted, JobLost, JobNotFound

_REFRESH = {"populate_existing": True}
_FREED: dict[str, Any] = {"lease_owner": None, "lease_until": None}
_DUE = func.coalesce(Job.not_before, 0.0) <= db_now()
WORKER_KINDS: Final = (JobKind.TRAIN, JobKind.EXTRACTOR)
"""What a worker trains. They share its turns; an ingest is the API's."""
RETRY_SECONDS: Final = 10.0
LONGEST_RETRY_SECONDS: Final = 600.0
"""A failed attempt waits the first after the first failure and twice as long after each other one, up to the second."""


@dataclass(frozen=True, kw_only=True)
class Reaped:
    """`jobs` were taken from dead workers (queued again, failed or cancelled); `ring` says that queued training waits for a worker."""

    jobs: tuple[Job, ...]
    ring: bool


def enqueue(
    session: Session,
    *,
    tenant_id: str,
    document_id: str | None = None,
    revision_id: str | None = None,
    kind: JobKind,
    params: dict[str, Any],
    priority: int = 0,
    max_attempts: int = 5,
) -> Job:
    """A new queued job, about one document or, the training of an extractor, about none alone. Ring the bell after the transaction, not
    in it."""
    row = {"tenant_id": tenant_id, "document_id": document_id, "revision_id": revision_id, "kind": kind, "params": params}
    times = {"created_at": db_now(), "updated_at": db_now()}
    new = insert(Job).values(
        id=f"job_{uuid.uuid4().hex}",
        state=JobState.QUEUED,
        metrics={},
        attempt=0,
        max_attempts=max_attempts,
        priority=priority,
        cancel_requested=False,
        **row,
        **times,
    )
    return session.scalars(new.returning(Job), execution_options=_REFRESH).one()


def claim(session: Session, kinds: JobKind | tuple[JobKind, ...], owner: str, lease_seconds: float) -> Job | None:
    """Take the best queued job that is due: highest priority, then the tenant whose last start lies furthest back, then the oldest.

    The row is taken by compare-and-set on (queued, attempt); who comes second looks again. A claimed training shows in its document.
    """
    best = _best((kinds,) if isinstance(kinds, JobKind) else kinds)
    while (candidate := session.scalars(best, execution_options=_REFRESH).one_or_none()) is not None:
        with session.begin_nested() as savepoint:
            job = _take(session, candidate, owner, lease_seconds)
            if job is None:
                savepoint.rollback()  # gives up the document's lock: whoever waits for one must not hold another
            elif job.state == JobState.RUNNING:
                return job
    return None


def hold(session: Session, job_id: str, attempt: int) -> Job:
    """The job of a running attempt, its document's row and its own held until the transaction ends. Raises JobLost."""
    mine = select(Job).where(Job.id == job_id, Job.attempt == attempt, Job.state == JobState.RUNNING)
    job = session.scalars(mine, execution_options=_REFRESH).one_or_none()
    if job is not None:
        _lock_document(session, job)
        job = session.scalars(mine.with_for_update(), execution_options=_REFRESH).one_or_none()
    if job is None:
        raise JobLost("the job belongs to another attempt")
    return job


def heartbeat(session: Session, job_id: str, attempt: int, lease_seconds: float) -> bool:
    """Extend the lease; true when the job is to be cancelled. Raises JobLost."""
    return _write(session, job_id, attempt, lease_until=db_now() + lease_seconds).cancel_requested


def progress(
    session: Session,
    job_id: str,
    attempt: int,
    *,
    stage: str,
    done: int,
    total: int,
    unit: str,
    eta_seconds: float | None = None,
    metrics: dict[str, Any] | None = None,
) -> bool:
    """Report where the job is; true when it is to be cancelled. Raises JobLost."""
    report: dict[str, Any] = {"done": done, "total": total, "unit": unit, "eta_seconds": eta_seconds}
    job = _write(session, job_id, attempt, stage=stage, progress=report)
    return (record_metrics(session, job_id, attempt, metrics) if metrics else job).cancel_requested


def record_metrics(session: Session, job_id: str, attempt: int, metrics: dict[str, Any]) -> Job:
    """Merge `metrics` into the row's. Raises JobLost."""
    known = session.scalar(select(Job.metrics).where(Job.id == job_id)) or {}
    return _write(session, job_id, attempt, metrics={**known, **metrics})


def succeed(session: Session, job_id: str, attempt: int) -> Job:
    """End a job well; the document's new status is the caller's to set, in the same transaction. Raises JobLost."""
    return _write(session, job_id, attempt, state=JobState.SUCCEEDED, finished_at=db_now(), error=None, **_FREED)


def fail(session: Session, job_id: str, attempt: int, *, code: str, message: str) -> Job:
    """End a job for good with an error that its owner can read. Raises JobLost."""
    return _end(session, job_id, attempt, JobState.FAILED, {"code": code, "message": message})


def cancelled(session: Session, job_id: str, attempt: int) -> Job:
    """End a running job that was asked to stop. Raises JobLost."""
    return _end(session, job_id, attempt, JobState.CANCELLED, None)


def release(session: Session, job_id: str, attempt: int, error: dict[str, Any] | None = None) -> Job:
    """Hand a running job back unfinished, through no fault of its own: the attempt is not held against it. Raises JobLost.

    `error` says meanwhile what it waits for. A job that was asked to stop is cancelled instead; so with `retry`.
    """
    return _requeue(session, hold(session, job_id, attempt), max_attempts=Job.max_attempts + 1, error=error)


def retry(session: Session, job_id: str, attempt: int, *, code: str, message: str, params: dict[str, Any] | None = None) -> Job:
    """Queue a job again after a failed attempt; the last allowed attempt fails it. Raises JobLost.

    The row says meanwhile what went wrong. It waits twice as long after each failure, so that what mends itself has the time to; with
    other `params`, which are the mending, not.
    """
    job = hold(session, job_id, attempt)
    if job.attempt >= job.max_attempts and not job.cancel_requested:
        return fail(session, job_id, attempt, code=code, message=message)
    error = {"code": code, "message": message}
    if params is not None:
        return _requeue(session, job, params=params, error=error)
    # Nobody has rung for the time when it is due: so the reaper does.
    return _requeue(session, job, not_before=db_now() + retry_delay(job.attempt), rung_at=None, error=error)


def retry_delay(attempt: int) -> float:
    """Seconds that a job waits after that attempt failed."""
    return min(RETRY_SECONDS * 2.0 ** min(attempt - 1, 30), LONGEST_RETRY_SECONDS)


def request_cancel(session: Session, tenant_id: str, job_id: str) -> JobState:
    """Cancel a queued job at once and ask a running one to stop; an ended job is left as it is. Raises JobNotFound."""
    mine = (Job.id == job_id, Job.tenant_id == tenant_id)
    job = session.scalars(select(Job).where(*mine), execution_options=_REFRESH).one_or_none()
    if job is None:
        raise JobNotFound("no such job")
    _lock_document(session, job)
    queued = Job.state == JobState.QUEUED
    job = _change(
        session,
        update(Job).where(*mine, Job.state.in_((JobState.QUEUED, JobState.RUNNING))),
        cancel_requested=True,
        state=case((queued, JobState.CANCELLED), else_=Job.state),
        finished_at=case((queued, db_now()), else_=Job.finished_at),
    )
    if job is not None and job.state == JobState.CANCELLED:
        documents.follow_job(session, job)
    return JobState(job.state if job is not None else session.scalars(select(Job.state).where(*mine)).one())


def reap(session: Session, kinds: Sequence[JobKind] = tuple(JobKind)) -> list[Job]:
    """Take running jobs from workers whose lease has run out: queued again, or failed after the last attempt, or cancelled if asked."""
    expired = (Job.state == JobState.RUNNING, Job.lease_until < db_now())
    found = select(Job).where(*expired, Job.kind.in_(kinds)).order_by(Job.document_id, Job.id)
    return [job for seen in list(session.scalars(found)) if (job := _reap_one(session, seen, and_(*expired))) is not None]


def unrung(session: Session, ring_seconds: float) -> list[str]:
    """Trainings that are due and have been queued, and not rung for, longer than `ring_seconds`; marks them as rung for."""
    waiting = Job.state == JobState.QUEUED, Job.kind.in_(WORKER_KINDS), _DUE
    silent = func.coalesce(Job.rung_at, Job.created_at) < db_now() - ring_seconds
    ids = list(session.scalars(select(Job.id).where(*waiting, silent).with_for_update(skip_locked=True)))
    session.execute(update(Job).where(Job.id.in_(ids)).values(rung_at=db_now()))
    return ids


def reap_once(session: Session, *, ring_seconds: float) -> Reaped:
    """One round of the reaper, for every kind of job. Ring, if so told, after the transaction."""
    jobs = tuple(reap(session))
    waiting = unrung(session, ring_seconds)
    again = any(job.kind in WORKER_KINDS and job.state == JobState.QUEUED for job in jobs)
    return Reaped(jobs=jobs, ring=again or bool(waiting))


def _best(kinds: tuple[JobKind, ...]) -> Any:
    other = aliased(Job)
    last_start = select(func.max(other.started_at)).where(other.kind.in_(kinds), other.tenant_id == Job.tenant_id).scalar_subquery()
    turn = func.coalesce(last_start, 0.0)
    queued = select(Job).where(Job.kind.in_(kinds), Job.state == JobState.QUEUED, _DUE)
    return queued.order_by(Job.priority.desc(), turn, Job.created_at, Job.id).limit(1)


def _take(session: Session, candidate: Job, owner: str, lease_seconds: float) -> Job | None:
    """The candidate, running or, if its document was deleted, cancelled; None if somebody else came first."""
    document = _lock_document(session, candidate)
    same = update(Job).where(Job.id == candidate.id, Job.state == JobState.QUEUED, Job.attempt == candidate.attempt)
    if document is None and candidate.document_id is not None:
        return _change(session, same, state=JobState.CANCELLED, finished_at=db_now())
    job = _change(session, same, **_claimed(owner, lease_seconds))
    if job is not None and job.kind == JobKind.TRAIN:
        documents.advance(session, job, DocumentStatus.TRAINING)
    return job


def _claimed(owner: str, lease_seconds: float) -> dict[str, Any]:
    lease = {"lease_owner": owner, "lease_until": db_now() + lease_seconds}
    fresh = {"started_at": db_now(), "stage": None, "progress": None, "error": None, "not_before": None}
    return {"state": JobState.RUNNING, "attempt": Job.attempt + 1, **fresh, **lease}


def _end(session: Session, job_id: str, attempt: int, state: JobState, error: dict[str, Any] | None) -> Job:
    hold(session, job_id, attempt)
    job = _write(session, job_id, attempt, state=state, error=error, finished_at=db_now(), **_FREED)
    documents.follow_job(session, job)
    return job


def _requeue(session: Session, job: Job, **values: Any) -> Job:
    if job.cancel_requested:
        return cancelled(session, job.id, job.attempt)
    return _write(session, job.id, job.attempt, **{"state": JobState.QUEUED, "rung_at": db_now(), **_FREED, **values})


def _reap_one(session: Session, seen: Job, expired: ColumnElement[bool]) -> Job | None:
    """None when a heartbeat or another reaper came first."""
    _lock_document(session, seen)
    held = select(Job).where(Job.id == seen.id, Job.attempt == seen.attempt, expired).with_for_update()
    job = session.scalars(held, execution_options=_REFRESH).one_or_none()
    if job is None:
        return None
    if job.attempt >= job.max_attempts and not job.cancel_requested:
        message = f"gave up after {job.attempt} attempts whose worker died; look at the worker's log, then retry"
        return fail(session, job.id, job.attempt, code=AttemptsExhausted.code, message=message)
    return _requeue(session, job)


def _lock_document(session: Session, job: Job) -> Document | None:
    """None for a document that is deleted, and where the job is about none."""
    return None if job.document_id is None else documents.lock(session, job.tenant_id, job.document_id)


def _write(session: Session, job_id: str, attempt: int, **values: Any) -> Job:
    """The fence: change the row only while it runs under this attempt."""
    fenced = update(Job).where(Job.id == job_id, Job.attempt == attempt, Job.state == JobState.RUNNING)
    job = _change(session, fenced, **values)
    if job is None:
        raise JobLost("the job belongs to another attempt")
    return job


def _change(session: Session, statement: Update, **values: Any) -> Job | None:
    changed = statement.values(updated_at=db_now(), **values).returning(Job)
    return session.scalars(changed, execution_options=_REFRESH).one_or_none()
