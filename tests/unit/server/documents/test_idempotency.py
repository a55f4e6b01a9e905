"""Requests with one Idempotency-Key at the same time, over a real SQLite file with a connection each."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from server.background import keep_house
from server.db.clock import db_now
from server.db.session import SyncDatabase
from server.db.tables import Document, IdempotencyKey
from server.documents import idempotency
from server.documents.idempotency import Reservation, Stored
from server.errors import IdempotencyInFlight
from server.transactions import writing
from tests.support.api import ACME, Api

HEADERS = {"Idempotency-Key": "k"}


async def count(api: Api, table: type[Any]) -> int:
    found: int = await api.sql(lambda session: session.scalar(select(func.count()).select_from(table)))
    return found


async def post(api: Api, text: str = "Staff get 31 days.") -> tuple[int, str]:
    response = await api.client.post("/documents", json={"text": text}, headers=HEADERS)
    body = response.json()
    return response.status_code, body.get("code") or body["id"]


async def test_of_many_at_once_one_creates_and_the_others_are_in_flight_or_get_its_answer(api: Api) -> None:
    answers = Counter(await asyncio.gather(*(post(api) for _ in range(12))))
    created = [answer for answer in answers if answer[0] == 202]
    assert len(created) == 1
    assert answers.keys() <= {created[0], (409, "idempotency_in_flight")}
    assert await post(api) == created[0]
    assert await count(api, Document) == 1


async def test_of_many_at_once_that_fail_none_leaves_the_key_taken(api: Api) -> None:
    answers = set(await asyncio.gather(*(post(api, "") for _ in range(12))))
    assert answers <= {(422, "empty_document"), (409, "idempotency_in_flight")}
    assert (422, "empty_document") in answers
    assert await count(api, IdempotencyKey) == 0
    assert (await post(api))[0] == 202


async def test_a_request_that_is_cut_off_at_any_moment_leaves_the_key_free_or_answered(api: Api) -> None:
    """Cancelled while it reserves the key too: the transaction may be committed all the same."""
    for number in range(40):
        headers = {"Idempotency-Key": f"k{number}"}
        request = asyncio.create_task(api.client.post("/documents", json={"text": f"Text {number}."}, headers=headers))
        await asyncio.sleep(number * 0.0004)
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
    await api.parts.tasks.finish()
    in_flight = select(func.count()).select_from(IdempotencyKey).where(IdempotencyKey.status.is_(None))
    assert await api.sql(lambda session: session.scalar(in_flight)) == 0


async def test_a_request_cancelled_after_its_reservation_was_committed_frees_the_key(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    committed = asyncio.Event()

    async def writing_that_tells_late(database: Any, work: Any, *args: Any, **kwargs: Any) -> Any:
        outcome = await writing(database, work, *args, **kwargs)
        if work is idempotency.reserve:
            committed.set()
            await asyncio.sleep(3600)
        return outcome

    monkeypatch.setattr("server.idempotent.writing", writing_that_tells_late)
    request = asyncio.create_task(post(api))
    await committed.wait()
    request.cancel()
    await asyncio.gather(request, return_exceptions=True)
    await api.parts.tasks.finish()
    assert await count(api, IdempotencyKey) == 0


async def test_a_reservation_of_a_process_that_died_is_taken_over_after_a_while_by_one(api: Api) -> None:
    dead = Reservation.of(ACME, "k")
    await writing(api.parts.database, idempotency.reserve, dead)
    assert await post(api) == (409, "idempotency_in_flight")
    aged = update(IdempotencyKey).values(created_at=db_now() - idempotency.IN_FLIGHT_SECONDS - 1)
    await api.sql(lambda session: session.execute(aged))
    answers = await asyncio.gather(*(post(api) for _ in range(6)))
    assert len({answer for answer in answers if answer[0] == 202}) == 1
    assert await count(api, Document) == 1
    await writing(api.parts.database, idempotency.abandon, dead)
    assert await count(api, IdempotencyKey) == 1, "the dead one holds nothing any more"
    with pytest.raises(IdempotencyInFlight):
        await writing(api.parts.database, idempotency.finish, dead, request_sha256="0", status=202, response={})


async def test_a_start_frees_what_was_in_flight_before_and_not_what_came_since(api: Api) -> None:
    before, since = Reservation.of(ACME, "before"), Reservation.of(ACME, "since")
    old = api.parts.blobs.temporary()
    old.write_bytes(b"half")
    await writing(api.parts.database, idempotency.reserve, before)
    await api.sql(lambda session: session.execute(update(IdempotencyKey).values(created_at=db_now() - 5)))
    os.utime(old, (time.time() - 5,) * 2)
    keeper = asyncio.create_task(keep_house(api.parts, sole_owner=True))
    await asyncio.sleep(0)
    new = api.parts.blobs.temporary()
    new.write_bytes(b"half")
    os.utime(new, (time.time() + 5,) * 2)  # a file system's clock may be some milliseconds behind
    await writing(api.parts.database, idempotency.reserve, since)
    while old.exists():
        await asyncio.sleep(0.01)
    keeper.cancel()
    await asyncio.gather(keeper, return_exceptions=True)
    assert await api.sql(lambda session: list(session.scalars(select(IdempotencyKey.key)))) == ["since"]
    assert new.exists()


def test_of_many_processes_one_gets_the_key(api: Api) -> None:
    """Threads with an engine each stand for processes: what serialises them is the file's lock."""
    together = Barrier(8)

    def attempt(_: int) -> str:
        database = SyncDatabase(api.parts.settings.sql_url)
        together.wait()
        try:
            with database.write() as session:
                return _named(session)
        finally:
            database.close()

    with ThreadPoolExecutor(8) as threads:
        assert sorted(threads.map(attempt, range(8))) == ["in flight"] * 7 + ["mine"]


def _named(session: Session) -> str:
    try:
        found = idempotency.reserve(session, Reservation.of(ACME, "k"))
    except IdempotencyInFlight:
        return "in flight"
    assert not isinstance(found, Stored), json.dumps(found.response)
    return "mine"


async def test_a_transaction_whose_caller_is_cancelled_ends_and_lets_go_of_the_lock(api: Api) -> None:
    begun = asyncio.Event()

    def slowly(session: Session) -> None:
        idempotency.reserve(session, Reservation.of(ACME, "k"))
        begun.set()
        time.sleep(0.05)
        session.execute(update(IdempotencyKey).values(status=202))

    caller = asyncio.create_task(writing(api.parts.database, slowly))
    await begun.wait()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    database = SyncDatabase(api.parts.settings.sql_url)
    with database.write() as session:
        assert list(session.scalars(select(IdempotencyKey.status))) == [202]
    database.close()
