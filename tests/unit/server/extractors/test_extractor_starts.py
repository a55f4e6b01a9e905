"""What `POST /extractors` says of a start that cannot be had."""

from __future__ import annotations

from typing import Any

import pytest

from server.parts import Loading
from tests.support import rows
from tests.support.api import ACME, Api
from tests.support.artefacts import write_extractor
from tests.support.extracting import claimed, indexed, question

SYSTEM = "system"
Answer = tuple[int, str, str]


async def started(api: Api, owner: str = ACME, **changes: Any) -> None:
    """An active extractor of rank 4, alpha 8 and scope `all`, with its files."""
    store = api.parts.modules
    ref = write_extractor(store.staging_extractor(owner))
    assert ref.composition is not None
    store.publish_extractor(ref.directory, owner, ref.composition)
    proof = {"composition_digest": ref.composition, "manifest_sha256": ref.manifest_sha256, "scope": "all"}
    await api.sql(lambda session: rows.extractor(session, owner, ref.digest, **{**proof, **changes}))


async def asked(api: Api, document: str, **body: Any) -> Answer:
    """(status, code, detail)"""
    response = await api.client.post("/extractors", json={"questions": [question(document)], **body})
    problem = response.json()
    return response.status_code, problem.get("code", ""), problem.get("detail", "")


@pytest.mark.parametrize("owner", [ACME, SYSTEM])
@pytest.mark.parametrize("recipe", [{}, {"rank": 4, "alpha": 8, "scope": "all"}, {"learn": "weights"}])
async def test_training_starts_from_ones_own_active_extractor_or_the_systems(api: Api, owner: str, recipe: dict[str, Any]) -> None:
    document = await indexed(api)
    await started(api, owner)
    assert (await asked(api, document, start="active", recipe=recipe))[0] == 202
    assert (await claimed(api)).params["start"] == "active"


@pytest.mark.parametrize("body", [{"start": "active"}, {"recipe": {"learn": "weights"}}])
async def test_where_none_is_active_there_is_nothing_to_start_from(api: Api, body: dict[str, Any]) -> None:
    document = await indexed(api)
    status, code, detail = await asked(api, document, **body)
    assert (status, code) == (422, "invalid_input")
    assert "no extractor is active to start from" in detail


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"rank": 8}, "has rank 4 and the recipe has rank 8"),
        ({"alpha": 4}, "has alpha 8 and the recipe has alpha 4"),
        ({"scope": "answer"}, "has scope `all` and the recipe has scope `answer`"),
        ({"learn": "weights", "rank": 8}, "has rank 4 and the recipe has rank 8"),
    ],
)
async def test_a_recipe_that_the_start_does_not_fit_is_refused(api: Api, recipe: dict[str, Any], message: str) -> None:
    document = await indexed(api)
    await started(api)
    status, code, detail = await asked(api, document, start="active", recipe=recipe)
    assert (status, code) == (422, "invalid_input")
    assert message in detail


@pytest.mark.parametrize("start", [None, "nothing"])
async def test_whoever_does_not_ask_for_a_start_may_have_another_rank(api: Api, start: str | None) -> None:
    document = await indexed(api)
    await started(api)
    assert (await asked(api, document, start=start, recipe={"rank": 8}))[0] == 202


async def test_one_of_another_base_model_is_no_start(api: Api) -> None:
    document = await indexed(api)
    await started(api, base_fingerprint="0" * 64)
    status, code, detail = await asked(api, document, start="active")
    assert (status, code) == (422, "invalid_input")
    assert "another base model" in detail
    assert (await asked(api, document))[0] == 202, "by default that is nothing"


async def test_what_cannot_be_known_yet_is_left_to_the_job(api: Api) -> None:
    """The row alone has the scope; the rest is in files that may lie elsewhere, and the base model may be loading."""
    document = await indexed(api)
    await api.sql(lambda session: rows.extractor(session, ACME, "a" * 64, scope="all", base_fingerprint="0" * 64))
    loading: Loading[Any] = Loading()
    object.__setattr__(api.parts, "models", loading)
    assert (await asked(api, document, start="active", recipe={"rank": 8}))[0] == 202
    assert (await asked(api, document, start="active", recipe={"scope": "answer"}))[0] == 422


async def test_only_the_operator_learns_whether_the_systems_has_a_start(api: Api) -> None:
    document = await indexed(api)
    status, code, _ = await asked(api, document, owner=SYSTEM, start="active")
    assert (status, code) == (403, "scope_missing")
