from __future__ import annotations

import json
from pathlib import Path

import httpx2
import pytest
from kmserve_client.errors import DocumentFailed, Unavailable, UnexpectedResponse, WaitTimeout
from kmserve_client.models import ApiKey

from tests.support.client_caller import Caller
from tests.support.scripted_api import ScriptedApi, answer, citation, document, problem


def test_a_request_carries_the_key_and_goes_where_the_url_says(caller: Caller) -> None:
    api = ScriptedApi(httpx2.Response(200, json=document()))
    assert caller.call(api, "document", "doc_1").title == "Policy"
    (request,) = api.requests
    assert (request.method, str(request.url)) == ("GET", "http://server/documents/doc_1")
    assert request.headers["authorization"] == "Bearer kms_a_b"


def test_upload_of_a_file_streams_it_with_its_fields(caller: Caller, tmp_path: Path) -> None:
    (tmp_path / "policy.md").write_bytes(b"# Leave\n31 days")
    api = ScriptedApi(httpx2.Response(202, json=document(status="ingesting")))
    uploaded = caller.call(api, "upload", tmp_path / "policy.md", title="Leave", metadata={"year": 2026}, train="never")
    assert uploaded.status == "ingesting"
    (request,) = api.requests
    assert request.headers["content-type"].startswith("multipart/form-data")
    for part in (b'filename="policy.md"', b"# Leave\n31 days", b'name="title"', b'{"year": 2026}', b"never"):
        assert part in request.content
    assert b'name="preset"' not in request.content


def test_upload_of_bytes_and_of_text(caller: Caller) -> None:
    api = ScriptedApi(httpx2.Response(202, json=document()), httpx2.Response(202, json=document()))
    caller.call(api, "upload", content=b"%PDF-", filename="a.pdf")
    caller.call(api, "upload", text="Only text.", metadata={"a": 1}, preset="quick")
    assert b'filename="a.pdf"' in api.requests[0].content
    assert json.loads(api.requests[1].content) == {"text": "Only text.", "metadata": {"a": 1}, "preset": "quick"}


@pytest.mark.parametrize("sources", [{}, {"text": "a", "content": b"b"}])
def test_upload_wants_exactly_one_source(caller: Caller, sources: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="exactly one"):
        caller.call(ScriptedApi(), "upload", **sources)


def test_each_upload_has_its_own_idempotency_key_unless_given_one(caller: Caller) -> None:
    api = ScriptedApi(*(httpx2.Response(202, json=document()) for _ in range(3)))
    caller.call(api, "upload", text="a")
    caller.call(api, "upload", text="a")
    caller.call(api, "upload", text="a", idempotency_key="mine")
    first, second, third = (request.headers["idempotency-key"] for request in api.requests)
    assert first != second
    assert third == "mine"


def test_documents_follows_the_cursor(caller: Caller) -> None:
    api = ScriptedApi(
        httpx2.Response(200, json={"items": [document("doc_1"), document("doc_2")], "next": "c1"}),
        httpx2.Response(200, json={"items": [document("doc_3")], "next": None}),
    )
    found = caller.collect(api, "documents", status="ready", page_size=2)
    assert [each.id for each in found] == ["doc_1", "doc_2", "doc_3"]
    assert dict(api.requests[1].url.params) == {"status": "ready", "limit": "2", "after": "c1"}


def test_wait_long_polls_until_the_module_is_there(caller: Caller) -> None:
    queued = {"id": "job_1", "kind": "train", "state": "queued"}
    api = ScriptedApi(
        httpx2.Response(200, json=document(status="ingesting", row_version=1)),
        httpx2.Response(304),
        httpx2.Response(200, json=document(status="retrieval_ready", row_version=2, job=queued)),
        httpx2.Response(200, json=document(status="ready", row_version=3)),
    )
    assert caller.call(api, "wait", "doc_1").status == "ready"
    waits = api.requests[1:]
    assert [request.headers["if-none-match"] for request in waits] == ['"1"', '"1"', '"2"']
    assert all(request.url.params["wait"] == "20" for request in waits)


def test_wait_for_retrieval_ends_sooner(caller: Caller) -> None:
    api = ScriptedApi(httpx2.Response(200, json=document(status="training")))
    assert caller.call(api, "wait", "doc_1", until="retrieval_ready").status == "training"


def test_wait_says_why_a_document_will_have_no_module(caller: Caller) -> None:
    failed = {"id": "job_1", "kind": "train", "state": "failed", "error": {"code": "gate_not_passed", "message": "not better"}}
    api = ScriptedApi(httpx2.Response(200, json=document(status="retrieval_ready", job=failed)))
    with pytest.raises(DocumentFailed, match="not better") as caught:
        caller.call(api, "wait", "doc_1")
    assert caught.value.code == "gate_not_passed"


def test_wait_runs_out_of_time(caller: Caller) -> None:
    api = ScriptedApi(httpx2.Response(200, json=document(status="ingesting")))
    with pytest.raises(WaitTimeout, match="ingesting"):
        caller.call(api, "wait", "doc_1", timeout=0)


def test_ask_sends_only_what_was_given(caller: Caller) -> None:
    scores = [{"text": "31 days", "logprobs": [-1.0, -0.5], "total": -1.5}, {"text": "45 days", "logprobs": [-4.0, -2.0], "total": -6.0}]
    api = ScriptedApi(httpx2.Response(200, json=answer(scores=scores)))
    got = caller.call(api, "ask", "How long?", document_id="doc_1", mode="closed_book", score=["31 days", "45 days"])
    assert api.bodies == [
        {"question": "How long?", "document_id": "doc_1", "mode": "closed_book", "score": ["31 days", "45 days"]},
    ]
    assert [(score.total, score.mean) for score in got.scores] == [(-1.5, -0.75), (-6.0, -3.0)]
    assert got.used.km.version == 1


def test_search(caller: Caller) -> None:
    api = ScriptedApi(httpx2.Response(200, json={"hits": [citation()]}))
    assert caller.call(api, "search", "leave", top_k=1)[0].quote == "31 days of leave"
    assert api.bodies == [{"query": "leave", "top_k": 1}]


@pytest.mark.parametrize("operation", ["cancel", "retry"])
def test_cancel_and_retry(caller: Caller, operation: str) -> None:
    api = ScriptedApi(httpx2.Response(202, json=document(status="cancelled")))
    assert caller.call(api, operation, "doc_1").status == "cancelled"
    assert api.requests[0].url.path == f"/documents/doc_1/{operation}"


def test_train_sends_what_is_given(caller: Caller) -> None:
    api = ScriptedApi(*[httpx2.Response(202, json=document(status="training"))] * 2)
    assert caller.call(api, "train", "doc_1", preset="standard", recipe={"rank": 8}, seed=3).status == "training"
    caller.call(api, "train", "doc_1")
    assert [request.url.path for request in api.requests] == ["/documents/doc_1/modules"] * 2
    assert api.bodies == [{"preset": "standard", "recipe": {"rank": 8}, "seed": 3}, {}]


def test_delete_gives_the_receipt(caller: Caller) -> None:
    removed = {"passages": 3, "revisions": 1, "modules": ["ab"], "jobs": 2}
    receipt = {"document_id": "doc_1", "deleted_at": 5.0, "complete": True, "removed": removed}
    got = caller.call(ScriptedApi(httpx2.Response(200, json=receipt)), "delete", "doc_1")
    assert (got.document_id, got.complete, got.removed.passages) == ("doc_1", True, 3)


def test_job(caller: Caller) -> None:
    progress = {"done": 3, "total": 9, "unit": "steps", "eta_seconds": 12.5}
    row = {"id": "job_1", "kind": "train", "state": "running", "stage": "fitting", "progress": progress, "attempt": 1}
    got = caller.call(ScriptedApi(httpx2.Response(200, json=row)), "job", "job_1")
    assert got.progress.eta_seconds == 12.5


def test_api_keys_are_made_listed_and_deleted(caller: Caller) -> None:
    key = {"id": "key_1", "tenant": "acme", "name": "reader", "prefix": "abc", "scopes": ["ask"], "created_at": 5.0}
    made = caller.call(ScriptedApi(httpx2.Response(201, json={**key, "key": "kms_abc_secret"})), "create_api_key", "reader", ["ask"])
    assert made.key == "kms_abc_secret"
    assert "secret" not in repr(made)
    assert caller.call(ScriptedApi(httpx2.Response(200, json={"items": [key]})), "api_keys") == [ApiKey(**key)]  # type: ignore[arg-type]
    assert caller.call(ScriptedApi(httpx2.Response(204)), "delete_api_key", "key_1") is None


def test_ready_tells_starting_from_broken(caller: Caller) -> None:
    assert caller.call(ScriptedApi(httpx2.Response(200, json={})), "ready") is True
    assert caller.call(ScriptedApi(problem(503, "starting", stage="weights")), "ready") is False
    assert caller.call(ScriptedApi(httpx2.ConnectError("refused")), "ready") is False
    with pytest.raises(Unavailable):
        caller.call(ScriptedApi(problem(503, "base_model_not_found")), "ready")


@pytest.mark.parametrize("strange", ["<html>", '{"id": 3}'])
def test_an_answer_that_is_not_this_apis_is_named_so(caller: Caller, strange: str) -> None:
    with pytest.raises(UnexpectedResponse):
        caller.call(ScriptedApi(httpx2.Response(200, text=strange)), "document", "doc_1")
