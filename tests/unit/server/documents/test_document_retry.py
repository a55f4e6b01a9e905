"""`POST /documents/{id}/retry`: what the errors of questions tell people to do is done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from server.db import jobs, modules
from server.db.tables import JobKind
from server.errors import IndexUnavailable
from server.parts import Loading
from server.transactions import writing
from tests.support.api import ACME, Api
from tests.support.asking import LEAVE, TRAVEL, ask, ready, refused


async def retried(api: Api, document: str) -> tuple[Any, ...]:
    response = await api.client.post(f"/documents/{document}/retry")
    shown = response.json()
    return (shown["status"], shown["job"]["kind"], shown["job"]["state"]) if response.status_code == 200 else (shown["code"],)


def files(api: Api, document: str, digest: str) -> Path:
    path = api.parts.modules.path(ACME, document, digest)
    path.mkdir(parents=True)
    return path


async def quarantine(api: Api, document: str) -> None:
    def work(session: Any) -> None:
        module = modules.active(session, ACME, document)
        assert module is not None
        modules.quarantine(session, ACME, module.id, "damaged")

    await api.sql(work)


async def test_a_document_whose_passages_and_module_can_answer_is_not_retried(api: Api) -> None:
    document, _, digest = await ready(api)
    files(api, document, digest)
    assert await retried(api, document) == ("not_retryable",)


async def test_a_quarantined_module_is_trained_again(api: Api) -> None:
    document, _, digest = await ready(api)
    files(api, document, digest)
    await quarantine(api, document)
    assert "retry" in (await refused(api, document_id=document, mode="closed_book"))[2]["detail"]
    before = api.ring.calls
    assert await retried(api, document) == ("training", "train", "queued")
    await api.parts.tasks.finish()
    assert api.ring.calls == before + 1
    assert await retried(api, document) == ("not_retryable",), "its training is under way"
    again = await api.train(document)
    files(api, document, again)
    assert (await ask(api, document_id=document, mode="closed_book"))["used"]["km"]["version"] == 2


async def test_a_module_of_another_base_model_is_trained_again(api: Api) -> None:
    document, _, digest = await ready(api, base_fingerprint="0" * 64)
    files(api, document, digest)
    assert "retry" in (await refused(api, document_id=document, mode="closed_book"))[2]["detail"]
    assert await retried(api, document) == ("training", "train", "queued")


async def test_a_module_whose_files_are_gone_is_trained_again(api: Api) -> None:
    document, _, _ = await ready(api)
    assert await retried(api, document) == ("training", "train", "queued")


async def test_a_document_that_the_present_index_has_not_is_ingested_again_and_keeps_its_module(api: Api) -> None:
    document, passages, digest = await ready(api)
    files(api, document, digest)
    api.index_fake.entries.clear()
    assert "retry" in (await refused(api, document_id=document, mode="retrieval"))[2]["detail"]
    assert await retried(api, document) == ("ingesting", "ingest", "queued")
    assert (await ask(api, document_id=document, mode="closed_book"))["used"]["km"]["digest"] == digest
    assert await api.index(document, (LEAVE, TRAVEL)) == passages
    shown = (await api.client.get(f"/documents/{document}")).json()
    assert (shown["status"], shown["module"]["digest"], shown["job"]["kind"]) == ("ready", digest, "ingest")
    assert (await ask(api, document_id=document, mode="open_book"))["used"]["passages"]
    assert await retried(api, document) == ("not_retryable",)


async def test_with_a_module_of_another_base_the_new_ingest_goes_on_to_its_training(api: Api) -> None:
    document, _, _ = await ready(api, base_fingerprint="0" * 64)
    api.index_fake.entries.clear()
    assert await retried(api, document) == ("ingesting", "ingest", "queued")
    await api.index(document, (LEAVE, TRAVEL))
    assert (await writing(api.parts.database, jobs.claim, JobKind.TRAIN, "test", 60.0)) is not None


async def test_a_failed_training_does_not_keep_lost_vectors_from_being_made_again(api: Api) -> None:
    document = (await api.uploaded())["id"]
    await api.index(document, [LEAVE])
    await api.fail(JobKind.TRAIN, "gate_not_passed")
    api.index_fake.entries.clear()
    assert await retried(api, document) == ("ingesting", "ingest", "queued")


@pytest.mark.parametrize("away", ["models", "index"])
async def test_what_failed_is_retried_without_models_and_what_they_must_judge_is_not(api: Api, away: str) -> None:
    settled, _, _ = await ready(api)
    failed = (await api.uploaded("Else."))["id"]
    await api.index(failed, ["Else."])
    await api.fail(JobKind.TRAIN, "trainer_crashed")
    if away == "models":
        object.__setattr__(api.parts, "models", Loading())
    else:
        api.index_fake.error = IndexUnavailable("away")
    assert await retried(api, settled) == ("starting" if away == "models" else "index_unavailable",)
    assert await retried(api, failed) == ("training", "train", "queued")
