"""`POST /ask`: modules that may not answer, extractors that are worn, revisions that are not mixed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from sqlalchemy import select

from server.db import jobs
from server.db.tables import JobKind, Module
from server.errors import (
    ArtefactRefused,
    ExtractorUnavailable,
    ModuleCorrupt,
    ModuleMissing,
    ModuleUnreadable,
    ModuleUnsupported,
    ModuleWrongBase,
    StorageFull,
)
from tests.support import rows
from tests.support.api import ACME, OPEN_BOOK, Api
from tests.support.asking import QUESTION, ask, ready, refused
from tests.support.rows import add_revision


async def module_row(api: Api, digest: str) -> Module:
    found: Module = await api.sql(
        lambda session: session.scalars(select(Module).where(Module.digest == digest, Module.tenant_id == ACME)).one()
    )
    return found


async def test_a_damaged_module_is_quarantined_and_refused_from_then_on(api: Api) -> None:
    document, _, digest = await ready(api, gate=OPEN_BOOK)
    files = api.parts.modules.path(ACME, document, digest)
    files.mkdir(parents=True)
    before = (await api.client.get(f"/documents/{document}")).headers["etag"]
    api.engine.error = ModuleCorrupt("damaged", reason="the digest of the tensors is not the expected one", digest=digest)
    for _ in range(2):
        assert (await refused(api, document_id=document, mode="closed_book"))[:2] == (503, "module_corrupt")
        api.engine.error = None
    row = await module_row(api, digest)
    assert (row.state, row.state_reason) == ("quarantined", "the digest of the tensors is not the expected one")
    assert not files.exists()
    assert [(path, error.code) for path, error in api.engine.evicted] == [(files, "module_corrupt")]
    shown = await api.client.get(f"/documents/{document}")
    assert shown.json()["module"]["state"] == "quarantined"
    assert shown.headers["etag"] != before
    assert (await refused(api, document_id=document))[1] == "module_corrupt", "auto is not quietly answered by something else"
    assert (await ask(api, document_id=document, fallback="retrieval"))["used"]["mode"] == "retrieval"


async def test_a_damaged_extractor_does_not_quarantine_the_module(api: Api) -> None:
    document, _, digest = await ready(api)
    api.engine.error = ModuleCorrupt("damaged", reason="bad", digest="9" * 64)
    assert (await refused(api, document_id=document, mode="closed_book"))[:2] == (503, "extractor_unavailable")
    assert (await module_row(api, digest)).state == "published"


async def test_a_module_of_another_base_model_is_refused_and_kept(api: Api) -> None:
    document, _, digest = await ready(api, base_fingerprint="0" * 64)
    assert (await refused(api, document_id=document, mode="open_book"))[:2] == (503, "module_wrong_base")
    assert api.engine.requests == []
    assert (await module_row(api, digest)).state == "published"


@pytest.mark.parametrize("kind", [ModuleWrongBase, ModuleUnsupported, ModuleMissing, ModuleUnreadable])
async def test_what_says_nothing_of_damage_refuses_the_module_and_keeps_it(api: Api, kind: type[ArtefactRefused]) -> None:
    document, _, digest = await ready(api)
    files = api.parts.modules.path(ACME, document, digest)
    files.mkdir(parents=True)
    api.engine.error = kind("not here", reason="why", digest=digest)
    status, code, problem = await refused(api, document_id=document, mode="open_book")
    assert (status, code, problem["document_id"]) == (503, kind.code, document)
    assert (await module_row(api, digest)).state == "published"
    assert files.exists()
    assert api.engine.evicted == []


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("kind", [ModuleCorrupt, ModuleWrongBase, ModuleUnsupported, ModuleMissing, ModuleUnreadable])
@pytest.mark.parametrize("mode", ["closed_book", "open_book", "auto"])
async def test_fallback_answers_when_loading_shows_that_the_module_cannot(
    api: Api, mode: str, kind: type[ArtefactRefused], streamed: bool
) -> None:
    document, passages, digest = await ready(api, gate=OPEN_BOOK)
    api.engine.module_error = kind("not here", reason="why", digest=digest)
    body = {"question": QUESTION, "document_id": document, "mode": mode, "fallback": "retrieval", "stream": streamed}
    response = await api.client.post("/ask", json=body)
    assert response.status_code == 200, response.text
    used = json.loads(response.text.split("data: ")[1].split("\n")[0])["used"] if streamed else response.json()["used"]
    assert (used["mode"], used["km"], used["passages"]) == ("retrieval", None, passages)
    assert (await module_row(api, digest)).state == ("quarantined" if kind is ModuleCorrupt else "published")
    assert [request.module is None for request in api.engine.requests] == [False, True]


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("mode", ["closed_book", "open_book", "auto"])
async def test_fallback_answers_when_there_is_no_room_to_read_the_module(api: Api, mode: str, streamed: bool) -> None:
    document, passages, digest = await ready(api, gate=OPEN_BOOK)
    api.engine.module_error = StorageFull("the server's storage is full; make room and ask again")
    assert (await refused(api, document_id=document, mode=mode, stream=streamed))[:2] == (507, "storage_full")
    body = {"question": QUESTION, "document_id": document, "mode": mode, "fallback": "retrieval", "stream": streamed}
    response = await api.client.post("/ask", json=body)
    assert response.status_code == 200, response.text
    used = json.loads(response.text.split("data: ")[1].split("\n")[0])["used"] if streamed else response.json()["used"]
    assert (used["mode"], used["km"], used["passages"]) == ("retrieval", None, passages)
    assert (await module_row(api, digest)).state == "published"


@pytest.mark.parametrize("mode", ["base", "in_context", "retrieval"])
async def test_no_fallback_takes_the_place_of_a_mode_without_module(api: Api, mode: str) -> None:
    document, _, _ = await ready(api)
    api.engine.error = StorageFull("full")
    assert (await refused(api, document_id=document, mode=mode, fallback="retrieval"))[:2] == (507, "storage_full")
    assert len(api.engine.requests) == 1


async def test_only_the_first_of_many_who_meet_the_damage_moves_the_files(api: Api) -> None:
    """The later ones may find a newly trained artefact in its place: equal bytes have an equal path."""
    document, _, digest = await ready(api)
    files = api.parts.modules.path(ACME, document, digest)

    async def quarantined_and_trained_again_meanwhile() -> None:
        api.engine.before = None
        await refused(api, document_id=document, mode="closed_book")
        files.mkdir(parents=True)

    api.engine.error = ModuleCorrupt("damaged", reason="bad", digest=digest)
    api.engine.before = quarantined_and_trained_again_meanwhile
    assert (await refused(api, document_id=document, mode="closed_book"))[1] == "module_corrupt"
    assert files.exists()


async def test_a_module_that_vanishes_with_its_document_is_not_found(api: Api) -> None:
    document, _, digest = await ready(api)

    async def deleted_meanwhile() -> None:
        await api.client.delete(f"/documents/{document}")

    api.engine.before = deleted_meanwhile
    api.engine.error = ModuleCorrupt("damaged", reason="missing", digest=digest)
    assert (await refused(api, document_id=document, mode="closed_book"))[:2] == (404, "document_not_found")


async def extractor(api: Api, owner: str, lora: str, *, active: bool = True) -> None:
    await api.sql(lambda session: rows.extractor(session, owner, lora, active=active))


async def test_the_active_extractor_is_worn_with_passages_and_modules(api: Api) -> None:
    document, _, _ = await ready(api)
    await extractor(api, "system", "a" * 64)
    for mode, worn in (("open_book", True), ("closed_book", True), ("retrieval", True), ("base", False), ("in_context", False)):
        answer = await ask(api, document_id=document, mode=mode)
        assert (answer["used"]["ke"], answer["used"]["composition"]) == (("a" * 64, "c" + "a" * 63) if worn else (None, None))
    request = api.engine.requests[0]
    assert request.extractor is not None
    assert (request.extractor.scope, request.extractor.composition) == ("answer", "c" + "a" * 63)
    await extractor(api, ACME, "b" * 64)
    assert (await ask(api, document_id=document, mode="retrieval"))["used"]["ke"] == "b" * 64
    await extractor(api, "globex", "d" * 64)
    assert (await ask(api, document_id=document, mode="retrieval"))["used"]["ke"] == "b" * 64


async def test_a_module_is_served_with_the_extractor_it_wears_or_not_at_all(api: Api) -> None:
    document, _, _ = await ready(api, wears="b" * 64)
    await extractor(api, "system", "a" * 64)
    assert (await refused(api, document_id=document, mode="closed_book"))[:2] == (503, ExtractorUnavailable.code)
    await extractor(api, ACME, "b" * 64, active=False)
    assert (await ask(api, document_id=document, mode="closed_book"))["used"]["ke"] == "b" * 64


async def test_two_revisions_are_never_mixed(api: Api) -> None:
    """A module of an older revision answers with that revision's passages; auto goes with the newer one's by retrieval."""
    document, old_passages, _ = await ready(api, gate=OPEN_BOOK)
    new_passages = await _new_revision(api, document, ["Staff get 33 days of leave."])
    closed = await ask(api, document_id=document, mode="open_book")
    assert closed["used"]["passages"] == old_passages
    assert len({citation["revision"] for citation in closed["citations"]}) == 1
    auto = await ask(api, document_id=document)
    assert (auto["used"]["mode"], auto["used"]["km"], auto["used"]["passages"]) == ("retrieval", None, new_passages)
    other = await api.uploaded("Else.", train="never")
    await api.index(other["id"], ["Nothing of that kind."])
    assert (await refused(api, document_ids=[document, other["id"]], mode="open_book"))[1] == "module_not_ready"


async def _new_revision(api: Api, document_id: str, texts: list[str]) -> list[str]:
    def renew(session: Any) -> None:
        add_revision(session, ACME, document_id, "rev_new", 2)
        jobs.enqueue(session, tenant_id=ACME, document_id=document_id, revision_id="rev_new", kind=JobKind.INGEST, params={})

    await api.sql(renew)
    return await api.index(document_id, texts)
