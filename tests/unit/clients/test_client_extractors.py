from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx2
import pytest
from kmserve_client.errors import Conflict, WaitTimeout

from tests.support.client_caller import Caller
from tests.support.scripted_api import ScriptedApi, problem

QUESTION = {"document_id": "doc_1", "question": "How many days?", "answer": "31"}


def job(state: str = "queued", **fields: Any) -> httpx2.Response:
    return httpx2.Response(202, json={"id": "job_1", "kind": "extractor", "state": state, **fields})


def extractor(**fields: Any) -> dict[str, Any]:
    digests = {"lora": "a" * 64, "composition": "b" * 64, "scope": "all"}
    return {"id": "ext_1", "owner": "acme", "name": None, "active": True, "created_at": 1.0, **digests, **fields}


def test_questions_are_sent_as_json(caller: Caller) -> None:
    api = ScriptedApi(job())
    assert (
        caller.call(api, "train_extractor", [QUESTION], name="Short", activate=True, start="active", recipe={"rank": 8}).state == "queued"
    )
    assert api.bodies == [{"questions": [QUESTION], "name": "Short", "activate": True, "start": "active", "recipe": {"rank": 8}}]
    assert api.requests[0].headers["idempotency-key"]


def test_a_file_of_questions_is_sent_as_a_form(caller: Caller, tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text(json.dumps(QUESTION))
    api = ScriptedApi(problem(503, "starting"), job())
    caller.call(api, "train_extractor", path=tmp_path / "q.jsonl", owner="system", documents=["doc_1"], seed=3)
    for request in api.requests:
        for part in (b'filename="q.jsonl"', b"How many days?", b'["doc_1"]', b"system"):
            assert part in request.content
    assert api.requests[0].headers["idempotency-key"] == api.requests[1].headers["idempotency-key"]


@pytest.mark.parametrize("sources", [{}, {"questions": [], "path": "q.jsonl"}])
def test_questions_come_from_one_source(caller: Caller, sources: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="exactly one"):
        caller.call(ScriptedApi(), "train_extractor", **sources)


def test_a_job_is_waited_for_to_its_end(caller: Caller) -> None:
    api = ScriptedApi(job("running"), job("succeeded", extractor_id="ext_1"))
    assert caller.call(api, "wait_for_job", "job_1").extractor_id == "ext_1"
    assert [request.url.params["wait"] for request in api.requests] == ["20", "20"]
    with pytest.raises(WaitTimeout):
        caller.call(ScriptedApi(job("running")), "wait_for_job", "job_1", timeout=0.0)
    assert caller.call(ScriptedApi(job("cancelled")), "cancel_job", "job_1").state == "cancelled"


def test_extractors_are_listed_shown_switched_and_deleted(caller: Caller) -> None:
    going = {"id": "job_2", "kind": "extractor", "state": "running"}
    listed = httpx2.Response(200, json={"items": [extractor()], "jobs": [going]})
    api = ScriptedApi(
        listed,
        httpx2.Response(200, json=extractor()),
        httpx2.Response(200, json=extractor(retraining=2)),
        httpx2.Response(200, json=extractor(active=False, retraining=0)),
        problem(409, "extractor_in_use"),
        httpx2.Response(204),
    )
    found = caller.call(api, "extractors")
    assert ([each.id for each in found.items], [each.id for each in found.jobs]) == (["ext_1"], ["job_2"])
    assert caller.call(api, "extractor", "ext_1").worn_by == 0
    assert caller.call(api, "activate_extractor", "ext_1").retraining == 2
    assert not caller.call(api, "deactivate_extractor", "ext_1").active
    with pytest.raises(Conflict) as refused:
        caller.call(api, "delete_extractor", "ext_1")
    assert refused.value.code == "extractor_in_use"
    assert caller.call(api, "delete_extractor", "ext_1") is None
    assert [f"{request.method} {request.url.path}" for request in api.requests] == [
        "GET /extractors",
        "GET /extractors/ext_1",
        "POST /extractors/ext_1/activate",
        "POST /extractors/ext_1/deactivate",
        "DELETE /extractors/ext_1",
        "DELETE /extractors/ext_1",
    ]
