"""`/api-keys`, and what a key may do."""

from __future__ import annotations

import time
from typing import Any

import pytest
from sqlalchemy import select

from server.api_keys.keys import KeyMaker, prefix_of
from server.db.tables import ApiKey
from tests.support.api import ACME, GLOBEX, Api, client_of


async def created(api: Api, client: Any, **body: Any) -> dict[str, Any]:
    response = await client.post("/api-keys", json={"name": "search", "scopes": ["ask"], **body})
    assert response.status_code == 201, response.text
    key: dict[str, Any] = response.json()
    return key


async def test_a_key_is_shown_once_and_stored_as_a_hash(api: Api) -> None:
    admin = await api.client_with("admin")
    key = await created(api, admin, scopes=["ask", "documents:read", "ask"])
    assert key["key"].startswith(f"kms_{key['prefix']}_")
    assert (key["tenant"], key["scopes"], key["expires_at"]) == (ACME, ["ask", "documents:read"], None)
    row = await api.sql(lambda session: session.scalars(select(ApiKey).where(ApiKey.id == key["id"])).one())
    assert row.hash == api.parts.keys.hash(key["key"])
    assert key["key"] not in str(vars(row))
    listed = (await admin.get("/api-keys")).json()["items"]
    assert listed[0] == {name: value for name, value in key.items() if name != "key"}
    assert (await client_of(api.app, key["key"]).get("/documents")).status_code == 200


async def test_a_revoked_key_opens_nothing(api: Api) -> None:
    admin = await api.client_with("admin")
    key = await created(api, admin)
    assert (await admin.delete(f"/api-keys/{key['id']}")).status_code == 204
    response = await client_of(api.app, key["key"]).post("/search", json={"query": "x"})
    assert (response.status_code, response.json()["code"]) == (401, "unauthorized")
    again = await admin.delete(f"/api-keys/{key['id']}")
    assert (again.status_code, again.json()["code"]) == (404, "api_key_not_found")
    assert key["id"] not in [item["id"] for item in (await admin.get("/api-keys")).json()["items"]]


async def test_an_expired_key_opens_nothing(api: Api) -> None:
    valid, expired = [await api.key("documents:read", expires_at=time.time() + seconds) for seconds in (60, -1)]
    assert (await client_of(api.app, valid).get("/documents")).status_code == 200
    assert (await client_of(api.app, expired).get("/documents")).status_code == 401


async def test_whatever_is_wrong_with_a_key_is_refused_in_the_same_words(api: Api) -> None:
    good = await api.key("documents:read")
    prefix = prefix_of(good)
    wrong = ["", "nonsense", f"kms_{prefix}_{'0' * 64}", f"kms_{'0' * 12}_{'0' * 64}", good + "0", good.upper(), f"kms_{prefix}_ü"]
    answers = set()
    for text in wrong:
        response = await client_of(api.app, None).get("/documents", headers={b"Authorization": f"Bearer {text}".encode()})
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == "Bearer"
        answers.add((response.json()["code"], response.json()["detail"]))
    assert len(answers - {("unauthorized", "send an API key as `Authorization: Bearer kms_…`")}) == 1
    assert (await client_of(api.app, None).get("/documents", headers={"Authorization": f"Basic {good}"})).status_code == 401
    assert (await client_of(api.app, None).get("/documents")).status_code == 401


def test_another_secret_proves_no_key() -> None:
    new = KeyMaker(b"one").new()
    assert KeyMaker(b"one").proves(new.text, new.hash)
    assert not KeyMaker(b"two").proves(new.text, new.hash)
    assert new.text not in repr(new)


@pytest.mark.parametrize(
    ("method", "path", "scope"),
    [
        ("POST", "/documents", "documents:write"),
        ("GET", "/documents", "documents:read"),
        ("GET", "/documents/doc_1", "documents:read"),
        ("GET", "/documents/doc_1/events", "documents:read"),
        ("DELETE", "/documents/doc_1", "documents:write"),
        ("POST", "/documents/doc_1/cancel", "documents:write"),
        ("POST", "/documents/doc_1/retry", "documents:write"),
        ("GET", "/jobs/job_1", "documents:read"),
        ("POST", "/ask", "ask"),
        ("POST", "/search", "ask"),
        ("POST", "/api-keys", "admin"),
        ("GET", "/api-keys", "admin"),
        ("DELETE", "/api-keys/key_1", "admin"),
    ],
)
async def test_each_operation_needs_its_scope(api: Api, method: str, path: str, scope: str) -> None:
    others = {"ask", "documents:read", "documents:write", "evaluate"} - {scope}
    body = {"question": "?", "query": "?", "name": "n", "scopes": ["ask"]}
    json = {name: body[name] for name in {"/ask": ["question"], "/search": ["query"], "/api-keys": ["name", "scopes"]}.get(path, [])}
    refused = await (await api.client_with(*others)).request(method, path, json=json if method == "POST" else None)
    assert (refused.status_code, refused.json()["code"], refused.json()["scope"]) == (403, "scope_missing", scope)
    allowed = await (await api.client_with("admin")).request(method, path, json=json if method == "POST" else None)
    assert allowed.status_code not in (401, 403)


async def test_an_admin_manages_the_keys_of_its_own_tenant_alone(api: Api) -> None:
    admin, stranger = await api.client_with("admin"), await api.client_with("admin", tenant=GLOBEX)
    theirs = await created(api, stranger)
    assert (await admin.post("/api-keys", json={"name": "n", "scopes": ["ask"], "tenant": GLOBEX})).json()["code"] == "scope_missing"
    assert (await admin.get(f"/api-keys?tenant={GLOBEX}")).json()["code"] == "scope_missing"
    assert (await admin.delete(f"/api-keys/{theirs['id']}")).json()["code"] == "api_key_not_found"
    assert (await client_of(api.app, theirs["key"]).post("/search", json={"query": "x"})).status_code == 200


async def test_the_operator_opens_tenants_and_manages_their_keys_but_sees_no_documents(api: Api) -> None:
    operator = await api.client_with("admin", tenant="default")
    first = await created(api, operator, tenant="initech", scopes=["admin"])
    assert first["tenant"] == "initech"
    tenant = client_of(api.app, first["key"])
    document = await api.uploaded(client=tenant)
    assert (await operator.get(f"/documents/{document['id']}")).status_code == 404
    assert (await operator.get("/documents")).json()["items"] == []
    assert [item["id"] for item in (await operator.get("/api-keys?tenant=initech")).json()["items"]] == [first["id"]]
    assert (await operator.delete(f"/api-keys/{first['id']}")).status_code == 204
    assert (await tenant.get("/documents")).status_code == 401


@pytest.mark.parametrize("scopes", [("documents:read",), ("ask", "evaluate", "documents:write")])
async def test_a_key_of_the_operators_tenant_without_admin_is_no_operator(api: Api, scopes: tuple[str, ...]) -> None:
    client = await api.client_with(*scopes, tenant="default")
    assert (await client.post("/api-keys", json={"name": "n", "scopes": ["ask"], "tenant": ACME})).status_code == 403


@pytest.mark.parametrize(
    "body",
    [
        {"name": ""},
        {"scopes": []},
        {"scopes": ["everything"]},
        {"expires_at": -1},
        {"expires_at": "never"},
        {"tenant": "system"},
        {"tenant": "../etc"},
        {"tenant": "Acme"},
        {"key": "kms_mine"},
    ],
)
async def test_a_key_that_makes_no_sense_is_refused(api: Api, body: dict[str, Any]) -> None:
    operator = await api.client_with("admin", tenant="default")
    response = await operator.post("/api-keys", json={"name": "n", "scopes": ["ask"], **body})
    assert (response.status_code, response.json()["code"]) == (422, "invalid_input")
