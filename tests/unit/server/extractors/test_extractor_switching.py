"""Showing, switching and deleting extractors, and what that does to answers and documents."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import select

from server.background import housework
from server.db import extractors
from server.db.tables import Audit, Extractor, ExtractorDocument, Job, JobKind
from server.errors import Starting
from server.parts import Loading
from tests.support.api import ACME, GLOBEX, OPEN_BOOK, Api
from tests.support.asking import ask
from tests.support.extracting import directory, lora_of, published, wearing


async def post(api: Api, path: str, client: Any = None) -> tuple[int, dict[str, Any]]:
    response = await (client or api.client).post(path)
    return response.status_code, response.json()


async def retrainings(api: Api) -> list[str]:
    queued = select(Job).where(Job.kind == JobKind.TRAIN, Job.state == "queued")
    return [job.document_id for job in await api.sql(lambda session: session.scalars(queued).all())]


async def test_an_extractor_is_shown_with_its_etag(api: Api) -> None:
    made = await published(api, "a", name="Short answers")
    response = await api.client.get(f"/extractors/{made}")
    shown = response.json()
    assert (shown["id"], shown["owner"], shown["name"], shown["active"]) == (made, ACME, "Short answers", False)
    assert (shown["lora"], shown["documents"], shown["worn_by"], shown["job_id"]) == (lora_of("a"), [], 0, None)
    again = await api.client.get(f"/extractors/{made}", headers={"If-None-Match": response.headers["etag"]})
    assert again.status_code == 304
    await post(api, f"/extractors/{made}/activate")
    changed = await api.client.get(f"/extractors/{made}", headers={"If-None-Match": response.headers["etag"]})
    assert (changed.status_code, changed.json()["active"]) == (200, True)


async def test_ones_own_and_the_systems_are_listed(api: Api) -> None:
    await published(api, "theirs", owner=GLOBEX)
    await published(api, "a")
    await published(api, "shared", owner="system")
    items = (await api.client.get("/extractors")).json()["items"]
    assert [item["id"] for item in items] == ["ext_shared", "ext_a"]


async def test_activation_is_one_switch_for_the_next_question(api: Api) -> None:
    first, second = await published(api, "a"), await published(api, "b")
    document = await wearing(api, lora_of("a"), "Staff get 31 days.")
    assert (await post(api, f"/extractors/{first}/activate"))[1]["retraining"] == 0
    assert (await ask(api, document_id=document, mode="retrieval"))["used"]["ke"] == lora_of("a")
    status, switched = await post(api, f"/extractors/{second}/activate")
    await api.parts.tasks.finish()
    assert (status, switched["active"], switched["retraining"]) == (200, True, 1)
    assert await retrainings(api) == [document]
    assert api.ring.calls == 1
    assert (await ask(api, document_id=document, mode="retrieval"))["used"]["ke"] == lora_of("b")
    assert (await ask(api, document_id=document, mode="closed_book"))["used"]["ke"] == lora_of("a"), (
        "its module is served as it was trained"
    )
    assert [item["active"] for item in (await api.client.get("/extractors")).json()["items"]] == [True, False]
    assert (await post(api, f"/extractors/{second}/activate"))[1]["retraining"] == 0


async def test_after_its_training_a_document_wears_the_new_one(api: Api) -> None:
    first, second = await published(api, "a", active=True), await published(api, "b")
    document = await wearing(api, lora_of("a"), "Staff get 31 days.")
    await post(api, f"/extractors/{second}/activate")
    await api.train(document, wears=lora_of("b"), gate=OPEN_BOOK)
    assert (await ask(api, document_id=document, mode="closed_book"))["used"]["ke"] == lora_of("b")
    assert [(await api.client.get(f"/extractors/{each}")).json()["worn_by"] for each in (first, second)] == [0, 1]


async def test_deactivated_it_leaves_answers_to_the_systems(api: Api) -> None:
    await published(api, "shared", owner="system", active=True)
    mine = await published(api, "a", active=True)
    document = await wearing(api, lora_of("shared"), "Staff get 31 days.")
    status, shown = await post(api, f"/extractors/{mine}/deactivate")
    assert (status, shown["active"]) == (200, False)
    assert (await ask(api, document_id=document, mode="retrieval"))["used"]["ke"] == lora_of("shared")
    assert (await post(api, f"/extractors/{mine}/deactivate"))[1]["row_version"] == shown["row_version"]


async def test_to_deactivate_one_that_is_not_active_touches_no_other(api: Api) -> None:
    active, idle = await published(api, "a", active=True), await published(api, "b")
    await post(api, f"/extractors/{idle}/deactivate")
    assert (await api.client.get(f"/extractors/{active}")).json()["active"]


async def test_what_could_not_be_served_is_not_activated(api: Api) -> None:
    foreign, gone = await published(api, "a", base_fingerprint="0" * 64), await published(api, "b", files=False)
    for each, why in ((foreign, "another base model"), (gone, "files are not there")):
        status, problem = await post(api, f"/extractors/{each}/activate")
        assert (status, problem["code"]) == (409, "extractor_not_servable")
        assert why in problem["detail"]
    loading: Loading[Any] = Loading()
    object.__setattr__(api.parts, "models", loading)
    assert (await post(api, f"/extractors/{foreign}/activate"))[1]["code"] == Starting.code


async def test_the_systems_is_switched_by_the_operator_for_all_who_have_none(api: Api) -> None:
    old, new = await published(api, "old", owner="system", active=True), await published(api, "new", owner="system")
    await published(api, "a", active=True)
    await wearing(api, lora_of("a"), "Mine.")
    theirs = await wearing(api, lora_of("old"), "Theirs.", tenant=GLOBEX)
    for path in (f"/extractors/{new}/activate", f"/extractors/{old}/deactivate"):
        assert (await post(api, path, await api.client_with("admin")))[1]["code"] == "scope_missing"
    operator = await api.client_with("admin", tenant="default")
    status, switched = await post(api, f"/extractors/{new}/activate", operator)
    assert (status, switched["retraining"], switched["worn_by"]) == (200, 1, 0)
    assert await retrainings(api) == [theirs]


async def test_what_is_in_use_is_not_deleted(api: Api) -> None:
    first, second = await published(api, "a", active=True), await published(api, "b")
    document = await wearing(api, lora_of("a"), "Staff get 31 days.")
    active = await api.client.delete(f"/extractors/{first}")
    assert (active.status_code, active.json()["code"]) == (409, "extractor_in_use")
    await post(api, f"/extractors/{second}/activate")
    worn = await api.client.delete(f"/extractors/{first}")
    assert (worn.status_code, worn.json()["code"], "1 documents" in worn.json()["detail"]) == (409, "extractor_in_use", True)
    await api.train(document, wears=lora_of("b"))
    assert (await api.client.delete(f"/extractors/{first}")).status_code == 204
    assert (await api.client.get(f"/extractors/{first}")).json()["code"] == "extractor_not_found"
    assert not directory(api, "a").exists()
    assert [(path, error.code) for path, error in api.engine.evicted] == [(directory(api, "a"), "extractor_unavailable")]


async def test_one_of_two_compositions_over_a_worn_lora_may_go(api: Api) -> None:
    first, second = await published(api, "a", active=True), await published(api, "weights", lora_digest=lora_of("a"))
    await wearing(api, lora_of("a"), "Staff get 31 days.")
    assert (await post(api, f"/extractors/{second}/activate"))[1]["retraining"] == 0
    assert (await api.client.delete(f"/extractors/{first}")).status_code == 204
    await post(api, f"/extractors/{second}/deactivate")
    assert (await api.client.delete(f"/extractors/{second}")).json()["code"] == "extractor_in_use"


async def test_the_systems_is_kept_while_any_tenants_modules_wear_it(api: Api) -> None:
    made = await published(api, "shared", owner="system")
    await wearing(api, lora_of("shared"), "Theirs.", tenant=GLOBEX)
    operator = await api.client_with("admin", tenant="default")
    assert (await operator.delete(f"/extractors/{made}")).json()["code"] == "extractor_in_use"
    assert (await api.client.delete(f"/extractors/{made}")).json()["code"] == "scope_missing"


async def test_files_that_another_one_stands_on_stay(api: Api) -> None:
    """Two trainings with one seed make the same bytes."""
    first = await published(api, "a")
    await published(api, "b", files=False, lora_digest=lora_of("a"), composition_digest=directory(api, "a").name)
    assert (await api.client.delete(f"/extractors/{first}")).status_code == 204
    assert directory(api, "a").exists()
    assert api.engine.evicted == []


async def test_with_an_extractor_goes_what_it_was_trained_on(api: Api) -> None:
    made = await published(api, "a", job_id="job_1")
    await api.sql(lambda session: session.add(ExtractorDocument(job_id="job_1", document_id="doc_1", revision_id="rev_1", tenant_id=ACME)))
    assert (await api.client.delete(f"/extractors/{made}")).status_code == 204
    left = await api.sql(lambda session: [session.scalars(select(table)).all() for table in (Extractor, ExtractorDocument)])
    assert left == [[], []]
    audited = await api.sql(lambda session: [(row.action, row.detail["extractor"]) for row in session.scalars(select(Audit))])
    assert audited == [("delete_extractor", made)]


async def test_a_deletion_that_a_crash_interrupted_is_finished(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    made = await published(api, "a")

    def full(*_: Any) -> None:
        raise OSError("the disk does not answer")

    with monkeypatch.context() as patched:
        patched.setattr(api.parts.modules, "delete_extractor", full)
        assert (await api.client.delete(f"/extractors/{made}")).status_code == 204
    assert (await api.client.get(f"/extractors/{made}")).status_code == 404
    assert (await post(api, f"/extractors/{made}/activate"))[0] == 404
    assert (await api.client.get("/extractors")).json()["items"] == []
    assert directory(api, "a").exists()
    await housework(api.parts)
    assert not directory(api, "a").exists()
    assert await api.sql(lambda session: session.scalars(select(Extractor)).all()) == []


async def test_what_is_being_deleted_serves_nobody(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that was published meanwhile finds its lora gone, and says so."""
    made = await published(api, "a")
    monkeypatch.setattr(api.parts.modules, "delete_extractor", lambda *_: (_ for _ in ()).throw(OSError("later")))
    await api.client.delete(f"/extractors/{made}")
    document = await wearing(api, lora_of("a"), "Staff get 31 days.")
    answer = await api.client.post("/ask", json={"question": "How many?", "document_id": document, "mode": "closed_book"})
    assert answer.json()["code"] == "extractor_unavailable"
    assert not await api.sql(lambda session: extractors.stays_servable(session, ACME, lora_of("a")))


@pytest.mark.parametrize("path", ["/extractors/ext_x/activate", "/extractors/ext_x/deactivate"])
async def test_an_absent_one_is_not_switched(api: Api, path: str) -> None:
    status, problem = await post(api, path)
    assert (status, problem["code"]) == (404, "extractor_not_found")
