"""`POST /extractors`, and its job."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx2
import pytest
from sqlalchemy import func, select

from server.background import housework
from server.db import jobs, material
from server.db.tables import ExtractorQuestion, IdempotencyKey, Job, JobKind
from server.extractors import requests, schemas
from server.transactions import writing
from tests.support import rows
from tests.support.api import ACME, GLOBEX, Api
from tests.support.extracting import claimed, indexed, question


async def count(api: Api, table: type[Any]) -> int:
    found: int = await api.sql(lambda session: session.scalar(select(func.count()).select_from(table)))
    return found


async def refused(api: Api, **body: Any) -> tuple[int, str, dict[str, Any]]:
    response = await api.client.post("/extractors", json=body)
    problem = response.json()
    return response.status_code, problem["code"], problem


def lines(*values: Any) -> dict[str, Any]:
    text = "\n".join(value if isinstance(value, str) else json.dumps(value) for value in values)
    return {"file": ("questions.jsonl", text.encode(), "application/jsonl")}


async def test_questions_become_a_job_that_a_worker_is_rung_for(api: Api) -> None:
    document = await indexed(api)
    wanted = {"name": "Short", "recipe": {"max_steps": 100, "learning_rate": 1e-4, "learn": "all"}, "seed": 7, "activate": True}
    response = await api.client.post("/extractors", json={"questions": [question(document)], **wanted})
    await api.parts.tasks.finish()
    job = response.json()
    assert (response.status_code, response.headers["location"]) == (202, f"/jobs/{job['id']}")
    assert (job["kind"], job["state"], job["document_id"], job["extractor_id"]) == ("extractor", "queued", None, None)
    assert api.ring.calls == 1
    row = await claimed(api)
    assert (row.id, row.tenant_id, row.params) == (job["id"], ACME, {"owner": ACME, "start": None, **wanted})
    asked = await api.sql(lambda session: material.questions(session, ACME, row.id))
    assert [vars(each) for each in asked] == [{"document_id": document, "question": "How many days?", "answers": ("31 days",)}]
    learned = await api.sql(lambda session: material.revisions(session, ACME, row.id))
    assert learned.keys() == {document}


async def test_a_file_of_json_lines_asks_the_same(api: Api) -> None:
    first, second = await indexed(api, "One."), await indexed(api, "Two.")
    several = {"document_id": second, "question": "Zwölf?", "answers": ["12", "twelve"]}
    form = {"name": "Short", "recipe": '{"max_steps": 9}', "documents": json.dumps([second]), "activate": "true", "seed": "3"}
    form["start"] = "nothing"
    response = await api.client.post("/extractors", files=lines("\ufeff" + json.dumps(question(first)), "", several, ""), data=form)
    assert response.status_code == 202, response.text
    row = await claimed(api)
    params = {"owner": ACME, "name": "Short", "recipe": {"max_steps": 9}, "activate": True, "seed": 3, "start": "nothing"}
    assert row.params == params
    asked = await api.sql(lambda session: material.questions(session, ACME, row.id))
    assert [(each.document_id, each.question, each.answers) for each in asked] == [(second, "Zwölf?", ("12", "twelve"))]


async def test_what_is_wrong_is_told_by_line(api: Api) -> None:
    document = await indexed(api)
    unread = (await api.uploaded("Not read yet."))["id"]
    bad = lines(question(document), "{", question(document, answer=None), question(document, question=""), question(document, extra=1))
    problem = (await api.client.post("/extractors", files=bad)).json()
    assert problem["code"] == "invalid_questions"
    assert [each["line"] for each in problem["errors"]] == [2, 3, 4, 5]
    assert problem["errors"][0]["message"] == "it is not a JSON object"
    assert "either `answer` or `answers`" in problem["errors"][1]["message"]
    assert problem["errors"][2]["message"].startswith("question: ")
    assert "31 days" not in json.dumps(problem), "not what stands there"

    absent = lines(question("doc_absent"), "", question(document), question(unread))
    problem = (await api.client.post("/extractors", files=absent)).json()
    assert [(each["line"], each["message"].split(";")[0]) for each in problem["errors"]] == [
        (1, "there is no such document"),
        (4, "the document is not indexed yet"),
    ]
    assert await count(api, Job) == 2, "of the documents alone"


@pytest.mark.parametrize("file", [b"", b"\n\n", b"\xff\xfe{}", b"[]", b'"text"'])
async def test_a_file_without_questions_is_refused(api: Api, file: bytes) -> None:
    response = await api.client.post("/extractors", files={"file": ("q.jsonl", file)})
    assert (response.status_code, response.json()["code"]) == (422, "invalid_questions")


async def test_of_many_wrong_lines_the_first_are_told(api: Api) -> None:
    problem = (await api.client.post("/extractors", files=lines(*["{"] * 100))).json()
    assert [each["line"] for each in problem["errors"]] == list(range(1, requests.MOST_TOLD + 1))


async def test_limits_have_clear_errors(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = await indexed(api, "One."), await indexed(api, "Two.")
    monkeypatch.setattr("server.extractors.service.MAX_DOCUMENTS", 1)
    status, code, problem = await refused(api, questions=[question(first), question(second)])
    assert (status, code) == (422, "invalid_input")
    assert "at most 1" in problem["detail"]
    monkeypatch.setattr(requests, "MAX_QUESTIONS", 1)
    problem = (await api.client.post("/extractors", files=lines(question(first), question(first)))).json()
    assert (problem["code"], "1 to 1" in problem["detail"]) == ("invalid_questions", True)
    monkeypatch.setattr(requests, "MAX_REQUEST_BYTES", 50)
    for sent in ({"json": {"questions": [question(first)]}}, {"files": lines(question(first))}):
        response = await api.client.post("/extractors", **sent)
        assert (response.status_code, response.json()["code"], response.json()["limit"]) == (413, "upload_too_large", 50)


async def test_more_than_an_ordinary_body_may_be_sent(api: Api) -> None:
    document = await indexed(api)
    response = await api.client.post("/extractors", files=lines(*[question(document, answer="x" * 3900)] * 400))
    assert response.status_code == 202, response.text
    assert schemas.MAX_QUESTIONS >= 400
    assert await count(api, ExtractorQuestion) == 400


@pytest.mark.parametrize(
    "body",
    [
        {"questions": []},
        {"questions": [{"document_id": "d", "question": "?", "answer": "a", "answers": ["a"]}]},
        {"questions": [{"document_id": "d", "question": "?\x00", "answer": "a"}]},
        {"recipe": {"Not a name": 1}},
        {"recipe": {"rank": [1]}},
        {"documents": []},
        {"seed": -1},
        {"start": "ext_1"},
        {"start": "nothing", "recipe": {"learn": "weights"}},
        {"unknown": 1},
    ],
)
async def test_a_body_that_is_none_is_refused(api: Api, body: dict[str, Any]) -> None:
    status, code, _ = await refused(api, **{"questions": [question("doc_1")], **body})
    assert (status, code) == (422, "invalid_input")


async def test_other_media_types_are_refused(api: Api) -> None:
    response = await api.client.post("/extractors", content=b"{}", headers={"content-type": "text/plain"})
    assert (response.status_code, response.json()["code"]) == (415, "unsupported_media_type")


async def test_documents_leave_out_the_questions_about_others(api: Api) -> None:
    first, second = await indexed(api, "One."), await indexed(api, "Two.")
    questions = [question(first), question(second)]
    assert (await api.client.post("/extractors", json={"questions": questions, "documents": [second]})).status_code == 202
    job = await claimed(api)
    assert (await api.sql(lambda session: material.revisions(session, ACME, job.id))).keys() == {second}
    status, code, problem = await refused(api, questions=[question(first)], documents=[first, second])
    assert (status, code) == (422, "invalid_input")
    assert "no question about 1" in problem["detail"]


async def test_the_same_key_and_body_make_one_job(api: Api) -> None:
    document = await indexed(api)
    body, headers = {"questions": [question(document)]}, {"Idempotency-Key": "k"}
    first, again = [await api.client.post("/extractors", json=body, headers=headers) for _ in range(2)]
    assert (first.status_code, again.status_code) == (202, 202)
    assert (first.json(), first.headers["location"]) == (again.json(), again.headers["location"])
    other = await api.client.post("/extractors", json={**body, "seed": 1}, headers=headers)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
    upload = await api.client.post("/documents", json={"text": "Another."}, headers=headers)
    assert upload.json()["code"] == "idempotency_key_reused", "the key is not that of another operation"


async def test_of_many_at_once_with_one_key_one_makes_a_job_and_one_that_fails_frees_it(api: Api) -> None:
    document = await indexed(api)
    headers = {"Idempotency-Key": "k"}
    assert (await api.client.post("/extractors", json={"questions": [question("doc_x")]}, headers=headers)).status_code == 422
    assert await count(api, IdempotencyKey) == 0

    async def post() -> httpx2.Response:
        return await api.client.post("/extractors", json={"questions": [question(document)]}, headers=headers)

    answers = await asyncio.gather(*(post() for _ in range(8)))
    assert {answer.status_code for answer in answers} <= {202, 409}
    made = await api.sql(lambda session: session.scalars(select(Job).where(Job.kind == JobKind.EXTRACTOR)).all())
    assert len(made) == 1


async def test_only_the_operator_trains_one_of_the_systems_and_on_its_own_documents(api: Api) -> None:
    operator = await api.client_with("admin", tenant="default")
    admin = await api.client_with("admin")
    mine, theirs = await indexed(api), await indexed(api, "The operator's.", tenant="default", client=operator)
    for owner in ("system", GLOBEX):
        refusal = await admin.post("/extractors", json={"questions": [question(mine)], "owner": owner})
        assert (refusal.status_code, refusal.json()["code"]) == (403, "scope_missing")
    foreign = await operator.post("/extractors", json={"questions": [question(mine)], "owner": "system"})
    assert foreign.json()["errors"] == [{"line": 1, "message": "there is no such document"}]
    assert (await operator.post("/extractors", json={"questions": [question(theirs)], "owner": ACME})).status_code == 403
    accepted = await operator.post("/extractors", json={"questions": [question(theirs)], "owner": "system"})
    assert accepted.status_code == 202, accepted.text
    job = await claimed(api)
    assert (job.tenant_id, job.params["owner"]) == ("default", "system")
    assert (await admin.get(f"/jobs/{job.id}")).status_code == 404


async def test_a_key_that_only_reads_trains_nothing(api: Api) -> None:
    reader = await api.client_with("documents:read")
    response = await reader.post("/extractors", json={"questions": [question("doc_1")]})
    assert (response.status_code, response.json()["code"]) == (403, "scope_missing")


async def test_its_job_can_be_followed_waited_for_and_cancelled(api: Api) -> None:
    document = await indexed(api)
    job = (await api.client.post("/extractors", json={"questions": [question(document)]})).json()
    row = await claimed(api)
    await writing(api.parts.database, jobs.progress, row.id, 1, stage="fitting", done=1, total=4, unit="steps")
    shown = (await api.client.get(f"/jobs/{job['id']}")).json()
    assert (shown["state"], shown["stage"], shown["progress"]["done"]) == ("running", "fitting", 1)
    assert [each["id"] for each in (await api.client.get("/extractors")).json()["jobs"]] == [job["id"]]
    waiting = asyncio.create_task(api.client.get(f"/jobs/{job['id']}?wait=30"))
    await asyncio.sleep(0.05)
    assert (await api.client.post(f"/jobs/{job['id']}/cancel")).json()["cancel_requested"]
    await writing(api.parts.database, jobs.cancelled, row.id, 1)
    assert (await waiting).json()["state"] == "cancelled"
    again = await api.client.post(f"/jobs/{job['id']}/cancel")
    assert (again.status_code, again.json()["code"]) == (409, "not_cancellable")
    assert (await api.client.get("/extractors")).json() == {"items": [], "jobs": []}


async def test_a_job_names_what_it_published(api: Api) -> None:
    document = await indexed(api)
    job = (await api.client.post("/extractors", json={"questions": [question(document)]})).json()
    row = await claimed(api)
    made = await api.sql(lambda session: rows.extractor(session, ACME, "a" * 64, active=False, job_id=row.id))
    await writing(api.parts.database, jobs.succeed, row.id, 1)
    await housework(api.parts)
    assert (await api.client.get(f"/jobs/{job['id']}")).json()["extractor_id"] == made
    shown = (await api.client.get(f"/extractors/{made}")).json()
    assert ([each["document_id"] for each in shown["documents"]], shown["job_id"]) == ([document], job["id"])
    assert await count(api, ExtractorQuestion) == 0, "the questions have served their purpose"
