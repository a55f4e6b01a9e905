"""`POST /documents/{id}/modules`: training again, with another preset or recipe."""

from __future__ import annotations

from typing import Any

import pytest

from server.db import jobs
from server.db.tables import Job, JobKind
from server.transactions import writing
from tests.support.api import Api

TEXTS = ["Staff get 31 days."]


async def indexed(api: Api, **fields: Any) -> str:
    document = await api.uploaded(**{"train": "never", **fields})
    await api.index(document["id"], TEXTS)
    return str(document["id"])


async def claimed(api: Api) -> Job:
    job = await writing(api.parts.database, jobs.claim, JobKind.TRAIN, "test", 60.0)
    assert job is not None
    return job


async def test_a_recipe_goes_to_the_job_and_the_worker_is_rung_for(api: Api) -> None:
    document = await indexed(api)
    body = {"preset": "standard", "recipe": {"max_steps": 100, "rewrites": 2, "alpha": 8}, "seed": 5}
    before = api.ring.calls
    response = await api.client.post(f"/documents/{document}/modules", json=body)
    await api.parts.tasks.finish()
    shown = response.json()
    assert (response.status_code, shown["status"], shown["job"]["kind"], shown["job"]["state"]) == (202, "training", "train", "queued")
    assert api.ring.calls == before + 1
    job = await claimed(api)
    assert job.params == {"preset": "standard", "recipe": {"max_steps": 100, "rewrites": 2, "alpha": 8.0}, "seed": 5}
    assert (await api.client.get(f"/documents/{document}")).json()["preset"] == "quick", "of this training alone"


async def test_without_anything_said_it_is_trained_as_before(api: Api) -> None:
    document = await indexed(api, preset="paper")
    assert (await api.client.post(f"/documents/{document}/modules", json={})).status_code == 202
    assert (await claimed(api)).params == {"preset": "paper"}


async def test_what_is_published_answers_until_the_next_one_is_and_after_it_failed(api: Api) -> None:
    document = await indexed(api, train="auto")
    digest = await api.train(document)
    shown = (await api.client.post(f"/documents/{document}/modules", json={"preset": "standard"})).json()
    assert (shown["status"], shown["module"]["digest"]) == ("training", digest)
    await api.fail(JobKind.TRAIN, "gate_not_passed")
    shown = (await api.client.get(f"/documents/{document}")).json()
    assert (shown["status"], shown["module"]["digest"], shown["error"]["code"]) == ("ready", digest, "gate_not_passed")


async def test_a_training_that_failed_is_retried_as_it_was_asked_for(api: Api) -> None:
    document = await indexed(api)
    body = {"preset": "standard", "recipe": {"rank": 8}, "seed": 3}
    await api.client.post(f"/documents/{document}/modules", json=body)
    await api.fail(JobKind.TRAIN, "gate_not_passed")
    assert (await api.client.post(f"/documents/{document}/retry")).status_code == 200
    assert (await claimed(api)).params == body


async def test_one_at_a_time(api: Api) -> None:
    document = (await api.uploaded())["id"]
    path = f"/documents/{document}/modules"
    ingesting = await api.client.post(path, json={})
    assert (ingesting.status_code, ingesting.json()["code"]) == (409, "job_under_way")
    await api.index(document, TEXTS)
    queued = await api.client.post(path, json={})
    assert queued.json()["code"] == "job_under_way"
    await claimed(api)
    assert (await api.client.post(path, json={})).json()["code"] == "job_under_way"


async def test_a_document_that_was_never_indexed_is_not_trained(api: Api) -> None:
    document = (await api.uploaded())["id"]
    await api.fail(JobKind.INGEST, "no_text_layer")
    refused = await api.client.post(f"/documents/{document}/modules", json={})
    assert (refused.status_code, refused.json()["code"]) == (409, "not_retrievable")


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ({"preset": "fast"}, "preset"),
        ({"recipe": {"steps": 7}}, "recipe.steps"),
        ({"recipe": {"max_steps": "8"}}, "recipe.max_steps"),
        ({"recipe": {"max_steps": 0}}, "recipe.max_steps"),
        ({"recipe": {"objective": "kd"}}, "recipe.objective"),
        ({"recipe": {"teacher_cache_bytes": 1}}, "recipe.teacher_cache_bytes"),
        ({"recipe": [1]}, "recipe"),
        ({"seed": -1}, "seed"),
        ({"objective": "lm"}, "objective"),
    ],
)
async def test_what_is_wrong_is_said_with_its_place(api: Api, body: dict[str, Any], where: str) -> None:
    document = await indexed(api)
    refused = await api.client.post(f"/documents/{document}/modules", json=body)
    assert (refused.status_code, refused.json()["code"]) == (422, "invalid_input")
    assert where in str([".".join(str(part) for part in error["loc"]) for error in refused.json()["errors"]])
    assert (await api.client.get(f"/documents/{document}")).json()["status"] == "retrieval_ready"


async def test_a_rank_that_no_slot_holds_is_refused_before_it_is_trained(api: Api) -> None:
    document = await indexed(api)
    refused = await api.client.post(f"/documents/{document}/modules", json={"recipe": {"rank": api.parts.settings.max_rank + 1}})
    assert (refused.status_code, refused.json()["code"]) == (422, "invalid_input")
    assert "KMSERVE_MAX_RANK" in refused.json()["detail"]


async def test_a_key_that_may_only_read_trains_nothing(api: Api) -> None:
    document = await indexed(api)
    reader = await api.client_with("documents:read")
    assert (await reader.post(f"/documents/{document}/modules", json={})).json()["code"] == "scope_missing"
