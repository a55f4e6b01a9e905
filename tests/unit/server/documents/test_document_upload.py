"""`POST /documents`."""

from __future__ import annotations

import asyncio
import hashlib
import json
from typing import Any

import pytest
from sqlalchemy import func, select

from server.db.tables import Document, IdempotencyKey, Job, Revision
from server.documents.uploads import display_name
from tests.support.api import ACME, Api
from tests.support.asgi import Exchange

TEXT = "Staff get 31 days of leave."


def form(content: bytes = TEXT.encode(), name: str = "policy.md", **fields: str) -> dict[str, Any]:
    return {"files": {"file": (name, content, "text/markdown")}, "data": fields}


def incoming(api: Api) -> list[str]:
    return [path.name for path in (api.parts.settings.root / "blobs" / ".incoming").iterdir()]


async def test_a_file_is_taken_with_its_fields(api: Api) -> None:
    fields: dict[str, Any] = {"title": "Leave policy", "external_id": "hr-17", "metadata": '{"a": 1}', "train": "never", "preset": "paper"}
    response = await api.client.post("/documents", **form(**fields))
    document = response.json()
    assert response.status_code == 202
    assert response.headers["location"] == f"/documents/{document['id']}"
    assert document["eta_seconds"] > 0
    assert {name: document[name] for name in fields} == {**fields, "metadata": {"a": 1}}
    assert (document["filename"], document["status"], document["job"]["kind"]) == ("policy.md", "ingesting", "ingest")
    assert document["revision"]["sha256"] == hashlib.sha256(TEXT.encode()).hexdigest()
    revision = await api.sql(lambda session: session.scalars(select(Revision)).one())
    assert api.parts.blobs.read_bytes(revision.blob) == TEXT.encode()
    assert revision.blob == f"{ACME}/{document['id']}/{document['revision']['id']}"
    assert incoming(api) == []


async def test_text_is_taken_as_json(api: Api) -> None:
    document = await api.uploaded(TEXT, filename="policy.md")
    assert (document["title"], document["filename"], document["preset"], document["train"]) == ("policy.md", "policy.md", "quick", "auto")


async def test_the_same_bytes_give_the_existing_document(api: Api) -> None:
    first = (await api.client.post("/documents", **form())).json()
    again = await api.client.post("/documents", **form(name="other.md", title="Other"))
    assert again.status_code == 200
    assert again.json()["id"] == first["id"]
    assert again.json()["title"] == "policy.md"
    kept = list((api.parts.settings.root / "blobs" / ACME).iterdir())
    assert [path.name for path in kept] == [first["id"]]


async def test_two_uploads_of_the_same_bytes_at_once_make_one_document(api: Api) -> None:
    responses = await asyncio.gather(*(api.client.post("/documents", **form()) for _ in range(4)))
    assert sorted(response.status_code for response in responses) == [200, 200, 200, 202]
    assert len({response.json()["id"] for response in responses}) == 1
    counts = await api.sql(lambda session: [session.scalar(select(func.count()).select_from(table)) for table in (Document, Revision, Job)])
    assert counts == [1, 1, 1]


async def test_the_same_bytes_of_two_tenants_are_two_documents(api: Api) -> None:
    mine, theirs = await api.uploaded(), await api.uploaded(client=api.stranger)
    assert mine["id"] != theirs["id"]


async def test_an_idempotency_key_repeats_the_answer(api: Api) -> None:
    headers = {"Idempotency-Key": "k1"}
    first = await api.client.post("/documents", json={"text": TEXT}, headers=headers)
    await api.index(first.json()["id"], [TEXT])
    again = await api.client.post("/documents", json={"text": TEXT}, headers=headers)
    assert (again.status_code, again.json(), again.headers["location"]) == (202, first.json(), first.headers["location"])


async def test_an_idempotency_key_belongs_to_one_tenant(api: Api) -> None:
    headers = {"Idempotency-Key": "k1"}
    await api.client.post("/documents", json={"text": TEXT}, headers=headers)
    theirs = await api.stranger.post("/documents", json={"text": "Something else."}, headers=headers)
    assert theirs.status_code == 202


@pytest.mark.parametrize("other", [{"text": "Other text."}, {"text": TEXT, "title": "Other title"}])
async def test_an_idempotency_key_with_another_body_is_refused(api: Api, other: dict[str, str]) -> None:
    headers = {"Idempotency-Key": "k1"}
    await api.client.post("/documents", json={"text": TEXT}, headers=headers)
    refused = await api.client.post("/documents", json=other, headers=headers)
    assert (refused.status_code, refused.json()["code"]) == (422, "idempotency_key_reused")


async def test_an_idempotency_key_in_flight_is_refused_and_free_again_after_a_failure(api: Api) -> None:
    started, go_on = asyncio.Event(), asyncio.Event()

    async def slowly() -> Any:
        yield b'{"text": "'
        started.set()
        await go_on.wait()
        yield b'"}'

    headers = {"Idempotency-Key": "k1", "Content-Type": "application/json"}
    first = asyncio.create_task(api.client.post("/documents", content=slowly(), headers=headers))
    await started.wait()
    second = await api.client.post("/documents", json={"text": TEXT}, headers=headers)
    go_on.set()
    assert (second.status_code, second.json()["code"]) == (409, "idempotency_in_flight")
    assert (await first).json()["code"] == "empty_document"
    third = await api.client.post("/documents", json={"text": TEXT}, headers=headers)
    assert third.status_code == 202


async def test_the_answer_of_a_key_goes_with_its_document(api: Api) -> None:
    headers = {"Idempotency-Key": "k1"}
    first = await api.client.post("/documents", json={"text": TEXT}, headers=headers)
    await api.client.delete(first.headers["location"])
    assert await api.sql(lambda session: session.scalar(select(func.count()).select_from(IdempotencyKey))) == 0
    again = await api.client.post("/documents", json={"text": TEXT}, headers=headers)
    assert again.status_code == 202
    assert again.json()["id"] != first.json()["id"]


@pytest.mark.parametrize("content_type", ["text/plain", "application/pdf", "application/x-www-form-urlencoded", "multipart/form-data", ""])
async def test_another_content_type_is_refused(api: Api, content_type: str) -> None:
    response = await api.client.post("/documents", content=TEXT.encode(), headers={"Content-Type": content_type})
    assert (response.status_code, response.json()["code"]) == (415, "unsupported_media_type")
    assert response.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("sent", [{"json": {"text": ""}}, form(b"")])
async def test_an_empty_document_is_refused(api: Api, sent: dict[str, Any]) -> None:
    response = await api.client.post("/documents", **sent)
    assert (response.status_code, response.json()["code"]) == (422, "empty_document")
    assert incoming(api) == []


@pytest.mark.parametrize("sent", [{"json": {"text": "x" * 64 * 1024 + "x"}}, form(b"x" * (64 * 1024 + 1))])
async def test_a_document_over_the_limit_is_refused(api: Api, sent: dict[str, Any]) -> None:
    response = await api.client.post("/documents", **sent)
    assert (response.status_code, response.json()["code"], response.json()["limit"]) == (413, "upload_too_large", 64 * 1024)
    assert incoming(api) == []


async def test_a_document_of_just_the_limit_is_taken(api: Api) -> None:
    assert (await api.client.post("/documents", **form(b"x" * 64 * 1024))).status_code == 202


async def test_an_endless_upload_is_read_no_further_than_its_limit(api: Api) -> None:
    sent = 0

    async def endless() -> Any:
        nonlocal sent
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="big.txt"\r\n\r\n'
        while sent < 1024**3:
            sent += 16 * 1024
            yield b"x" * 16 * 1024

    response = await api.client.post("/documents", content=endless(), headers={"Content-Type": "multipart/form-data; boundary=b"})
    assert (response.status_code, response.json()["code"]) == (413, "upload_too_large")
    assert sent <= 128 * 1024
    assert incoming(api) == []


async def test_an_endless_preamble_is_read_no_further_either(api: Api) -> None:
    async def endless() -> Any:
        for _ in range(1024):
            yield b"x" * 16 * 1024

    response = await api.client.post("/documents", content=endless(), headers={"Content-Type": "application/json"})
    assert response.status_code == 413


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"nothing like a form",
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\ncut short',
        b'--b\r\nContent-Disposition: form-data; name="title"\r\n\r\nno file\r\n--b--\r\n',
        b"--b\r\nContent-Disposition: form-data\r\n\r\nno name\r\n--b--\r\n",
        b'--b\r\nContent-Disposition: form-data; name="title"\r\n\r\n\xff\xfe\r\n--b--\r\n',
        b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\na\r\n'
        b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\nb\r\n--b--\r\n',
    ],
)
async def test_a_broken_form_is_refused(api: Api, body: bytes) -> None:
    response = await api.client.post("/documents", content=body, headers={"Content-Type": "multipart/form-data; boundary=b"})
    assert (response.status_code, response.json()["code"]) == (422, "invalid_input")
    assert incoming(api) == []


@pytest.mark.parametrize(
    "fields",
    [
        {"titel": "misspelt"},
        {"train": "sometimes"},
        {"preset": "huge"},
        {"metadata": "not JSON"},
        {"metadata": "[1]"},
        {"metadata": '{"a": NaN}'},
        {"metadata": '{"a": "\\u0000"}'},
        {"metadata": json.dumps({"a": "x" * 20_000})},
        {"title": "a\x00b"},
        {"title": "x" * 301},
    ],
)
async def test_a_wrong_field_is_refused(api: Api, fields: dict[str, Any]) -> None:
    response = await api.client.post("/documents", **form(**fields))
    assert (response.status_code, response.json()["code"]) == (422, "invalid_input")
    assert "x" * 100 not in response.text


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"title": "no text"}', b'{"text": 1}', b'{"text": "\\ud800"}', b"\xff"])
async def test_a_wrong_text_upload_is_refused(api: Api, body: bytes) -> None:
    response = await api.client.post("/documents", content=body, headers={"Content-Type": "application/json"})
    assert (response.status_code, response.json()["code"]) == (422, "invalid_input")


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\Users\\me\\policy.docx", "policy.docx"),
        ("/abs/policy.md", "policy.md"),
        ("a\x00b\nc.txt", "abc.txt"),
        ("..", None),
        ("dir/", None),
        ("", None),
        (None, None),
        ("Grüße.pdf", "Grüße.pdf"),
        ("x" * 300 + ".pdf", "x" * 251 + ".pdf"),
    ],
)
def test_a_file_name_is_for_display_alone(given: str | None, shown: str | None) -> None:
    assert display_name(given) == shown


async def test_a_path_like_name_touches_no_other_file(api: Api) -> None:
    response = await api.client.post("/documents", **form(name="../../../admin.key"))
    assert response.json()["filename"] == "admin.key"
    assert not (api.parts.settings.root / "admin.key").exists()


async def test_a_client_that_goes_away_leaves_nothing(api: Api) -> None:
    headers = {**api.client.headers, "Content-Type": "multipart/form-data; boundary=b", "Idempotency-Key": "k1"}
    half = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\nhalf'
    await Exchange(api.app, "POST", "/documents", headers, [half], cut=True).start().ended()
    assert incoming(api) == []
    counts = await api.sql(
        lambda session: [session.scalar(select(func.count()).select_from(table)) for table in (Document, IdempotencyKey)]
    )
    assert counts == [0, 0]


async def test_the_eta_of_a_tenant_with_history_is_its_own(api: Api) -> None:
    first = await api.uploaded("One.", train="never")
    await api.index(first["id"], ["One."])
    second = await api.uploaded("Two.", train="never")
    assert second["eta_seconds"] < first["eta_seconds"]
