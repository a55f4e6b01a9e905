"""Idempotency-Key: the same key with the same body gets the same answer, with another body 422, and 409 while the first is in flight.

    reserve (before the body is read) -> finish (in the transaction of what it protects) | abandon (on any error, of `reserve` too)

A reservation holds a token in place of the body's hash. One whose request died with its process can be taken over after a while.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import delete, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from server.db.clock import db_now
from server.db.tables import IdempotencyKey
from server.errors import IdempotencyInFlight, IdempotencyKeyReused

IN_FLIGHT_SECONDS: Final = 600.0
"""A reservation older than this belongs to a request that died."""
KEPT_SECONDS: Final = 24 * 3600.0


@dataclass(frozen=True, kw_only=True)
class Stored:
    """An answer given before, and the hash of the request that got it."""

    request_sha256: str
    status: int
    response: dict[str, Any]

    def for_request(self, request_sha256: str) -> Stored:
        """Raises IdempotencyKeyReused for another request."""
        if request_sha256 != self.request_sha256:
            raise IdempotencyKeyReused("this Idempotency-Key was used with another body; use a new key for a new request")
        return self


@dataclass(frozen=True, kw_only=True)
class Reservation:
    tenant_id: str
    key: str
    token: str

    @classmethod
    def of(cls, tenant_id: str, key: str) -> Reservation:
        """One that nobody has made yet."""
        return cls(tenant_id=tenant_id, key=key, token=f"in-flight:{uuid.uuid4().hex}")


def reserve(session: Session, mine: Reservation) -> Stored | None:
    """Take the key, or find what was answered under it. Raises IdempotencyInFlight."""
    _forget_dead(session, mine)
    try:
        with session.begin_nested():
            row = {"tenant_id": mine.tenant_id, "key": mine.key, "request_sha256": mine.token}
            session.execute(insert(IdempotencyKey).values(**row, created_at=db_now()))
        return None
    except IntegrityError:
        found = select(IdempotencyKey).where(IdempotencyKey.tenant_id == mine.tenant_id, IdempotencyKey.key == mine.key)
        row_found = session.scalars(found).one_or_none()
    # On PostgreSQL the request that was in the way may have failed, and freed the key, since the insert.
    if row_found is None or row_found.status is None or row_found.response is None:
        raise IdempotencyInFlight("a request with this Idempotency-Key is in flight; try again when it has ended")
    return Stored(request_sha256=row_found.request_sha256, status=row_found.status, response=row_found.response)


def finish(session: Session, mine: Reservation, *, request_sha256: str, status: int, response: dict[str, Any]) -> None:
    """Keep the answer. Raises IdempotencyInFlight if the reservation was taken over, and with it this transaction must fail."""
    kept = _own(mine).values(request_sha256=request_sha256, status=status, response=response).returning(IdempotencyKey.key)
    if session.scalar(kept) is None:
        raise IdempotencyInFlight("this request took too long and another one with its Idempotency-Key came after it")


def abandon(session: Session, mine: Reservation) -> None:
    """Free the key after a request that failed, if it held it."""
    held = delete(IdempotencyKey).where(IdempotencyKey.tenant_id == mine.tenant_id, IdempotencyKey.key == mine.key)
    session.execute(held.where(IdempotencyKey.request_sha256 == mine.token))


def forget_document(session: Session, tenant_id: str, document_id: str) -> None:
    """Answers hold titles and metadata: they go with their document."""
    about = IdempotencyKey.response["id"].as_string() == document_id
    session.execute(delete(IdempotencyKey).where(IdempotencyKey.tenant_id == tenant_id, about))


def sweep(session: Session) -> None:
    """Drop old answers."""
    session.execute(delete(IdempotencyKey).where(IdempotencyKey.created_at < db_now() - KEPT_SECONDS))


def free_reserved_before(session: Session, moment: float) -> None:
    """Free the keys that were reserved before a process started that knows that no other one takes requests."""
    session.execute(delete(IdempotencyKey).where(IdempotencyKey.status.is_(None), IdempotencyKey.created_at < moment))


def _forget_dead(session: Session, mine: Reservation) -> None:
    same = delete(IdempotencyKey).where(IdempotencyKey.tenant_id == mine.tenant_id, IdempotencyKey.key == mine.key)
    session.execute(same.where(IdempotencyKey.status.is_(None), IdempotencyKey.created_at < db_now() - IN_FLIGHT_SECONDS))


def _own(mine: Reservation) -> Any:
    held = (IdempotencyKey.tenant_id == mine.tenant_id, IdempotencyKey.key == mine.key, IdempotencyKey.request_sha256 == mine.token)
    return update(IdempotencyKey).where(*held)
