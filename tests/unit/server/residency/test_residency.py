"""`GET /modules/residency`: one's own modules by tier, and nobody else's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import select

from server.db import modules
from server.db.tables import Module
from server.engine.request import Tier
from server.parts import Loading
from tests.support.api import ACME, GLOBEX, Api


async def trained(api: Api, text: str, *, tenant: str = ACME, files: bool = True) -> tuple[str, str, Path]:
    """Document, digest and directory of a published module; its files are there, and empty."""
    document = await api.uploaded(text, client=api.client if tenant == ACME else api.stranger)
    await api.index(document["id"], [text], tenant=tenant)
    digest = await api.train(document["id"], tenant=tenant)
    directory = api.parts.modules.path(tenant, document["id"], digest)
    if files:
        directory.mkdir(parents=True)
    return document["id"], digest, directory


async def shown(api: Api, tenant: str = ACME, **query: Any) -> list[dict[str, Any]]:
    admin = await api.client_with("admin", tenant=tenant)
    response = await admin.get("/modules/residency", params=query)
    assert response.status_code == 200, response.text
    items: list[dict[str, Any]] = response.json()["items"]
    return items


async def test_each_module_is_shown_on_its_fastest_tier(api: Api) -> None:
    device, host, disk, gone = [await trained(api, f"Text {number}.", files=number < 3) for number in range(4)]
    api.engine.held = {device[2]: Tier.DEVICE, host[2]: Tier.HOST}
    tiers = {item["document_id"]: item["tier"] for item in await shown(api)}
    assert tiers == {device[0]: "device", host[0]: "host", disk[0]: "disk", gone[0]: None}
    [one] = [item for item in await shown(api) if item["tier"] == "device"]
    assert one == {"document_id": device[0], "version": 1, "digest": device[1], "state": "published", "active": True, "tier": "device"}


async def test_only_the_tenants_own_modules_are_shown(api: Api) -> None:
    mine = await trained(api, "The same text.")
    theirs = await trained(api, "The same text.", tenant=GLOBEX)
    api.engine.held = {mine[2]: Tier.DEVICE, theirs[2]: Tier.HOST, Path("/elsewhere"): Tier.DEVICE}
    assert [(item["document_id"], item["tier"]) for item in await shown(api)] == [(mine[0], "device")]
    assert [(item["document_id"], item["tier"]) for item in await shown(api, GLOBEX)] == [(theirs[0], "host")]
    assert await shown(api, "default") == [], "the operator's documents are its own too"


async def test_anothers_module_id_as_a_cursor_leads_to_ones_own_alone(api: Api) -> None:
    mine = [await trained(api, f"Text {number}.") for number in range(3)]
    await trained(api, "Text 1.", tenant=GLOBEX)
    foreign = await api.sql(lambda session: session.scalars(select(Module.id).where(Module.tenant_id == GLOBEX)).one())
    documents = {item["document_id"] for item in await shown(api, after=foreign)}
    assert documents <= {document for document, _, _ in mine}


async def test_pages_follow_one_another(api: Api) -> None:
    wanted = {(await trained(api, f"Text {number}."))[0] for number in range(5)}
    admin = await api.client_with("admin")
    found, after = [], None
    for size in (2, 2, 1):
        page = (await admin.get("/modules/residency", params={"limit": 2} | ({"after": after} if after else {}))).json()
        assert len(page["items"]) == size
        found += [item["document_id"] for item in page["items"]]
        after = page["next"]
    assert after is None
    assert len(found) == 5
    assert set(found) == wanted


async def test_deleted_documents_are_not_shown_and_damaged_modules_are_on_no_tier(api: Api) -> None:
    deleted, damaged = await trained(api, "One."), await trained(api, "Two.")
    assert (await api.client.delete(f"/documents/{deleted[0]}")).status_code == 200
    assert api.engine.forgotten == [ACME]

    def quarantine(session: Any) -> None:
        found = modules.active(session, ACME, damaged[0])
        assert found is not None
        modules.quarantine(session, ACME, found.id, "damaged")

    await api.sql(quarantine)
    api.parts.modules.quarantine(ACME, damaged[0], damaged[1], "damaged")
    [item] = await shown(api)
    assert (item["document_id"], item["state"], item["tier"]) == (damaged[0], "quarantined", None)


async def test_it_needs_an_admin_key_and_an_engine(api: Api) -> None:
    refused = await api.client.get("/modules/residency")
    assert (refused.status_code, refused.json()["code"], refused.json()["scope"]) == (403, "scope_missing", "admin")
    object.__setattr__(api.parts, "models", Loading[Any]())
    admin = await api.client_with("admin")
    starting = await admin.get("/modules/residency")
    assert (starting.status_code, starting.json()["code"]) == (503, "starting")
