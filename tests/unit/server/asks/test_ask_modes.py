"""`POST /ask`: what each mode uses, over one document, several, or all."""

from __future__ import annotations

from typing import Any

import pytest

from server.engine.prompt import ANSWER_BARE, ANSWER_PASSAGES
from tests.support.api import ACME, CONTEXT, OPEN_BOOK, Api
from tests.support.asking import LEAVE, TRAVEL, ask, prompt_of, ready, refused


async def test_open_book_wears_the_module_and_cites_passages_best_last_in_the_prompt(api: Api) -> None:
    document, passages, digest = await ready(api)
    answer = await ask(api, document_id=document, mode="open_book")
    assert answer["answer"] == "31 days"
    assert answer["finish_reason"] == "stop"
    assert answer["used"] == {
        "mode": "open_book",
        "base": "tiny",
        "km": {"document_id": document, "version": 1, "digest": digest},
        "ke": None,
        "composition": None,
        "passages": passages,
        "dropped_passages": [],
    }
    first = answer["citations"][0]
    assert (first["quote"], first["filename"], first["page"], first["char_start"], first["char_end"]) == (
        LEAVE,
        "policy.md",
        1,
        0,
        len(LEAVE),
    )
    assert first["document_id"] == document
    assert first["score"] >= answer["citations"][1]["score"]
    [request] = api.engine.requests
    assert request.module is not None
    assert (request.module.digest, request.tenant, request.extractor) == (digest, ACME, None)
    assert request.module.directory == api.parts.modules.path(ACME, document, digest)
    assert api.engine.prefetched == [request.module]
    prompt = prompt_of(api)
    assert prompt.index(TRAVEL) < prompt.index(LEAVE) < prompt.index(ANSWER_PASSAGES)
    assert answer["usage"] == {"prompt_tokens": len(request.prompt), "completion_tokens": 2}


async def test_closed_book_wears_the_module_without_passages(api: Api) -> None:
    document, _, digest = await ready(api)
    answer = await ask(api, document_id=document, mode="closed_book")
    assert (answer["used"]["mode"], answer["used"]["km"]["digest"], answer["used"]["passages"]) == ("closed_book", digest, [])
    assert answer["citations"] == []
    assert LEAVE not in prompt_of(api)
    assert ANSWER_BARE in prompt_of(api)


async def test_retrieval_uses_passages_alone(api: Api) -> None:
    document, passages, _ = await ready(api)
    answer = await ask(api, document_id=document, mode="retrieval", top_k=1)
    assert (answer["used"]["mode"], answer["used"]["km"], answer["used"]["passages"]) == ("retrieval", None, passages[:1])
    assert api.engine.requests[0].module is None


async def test_in_context_puts_the_whole_document_in_the_prompt(api: Api) -> None:
    document, _, _ = await ready(api)
    answer = await ask(api, document_id=document, mode="in_context")
    assert (answer["used"]["mode"], answer["used"]["km"], answer["citations"]) == ("in_context", None, [])
    assert f"{LEAVE}\n\n{TRAVEL}" in prompt_of(api)


async def test_base_uses_nothing(api: Api) -> None:
    document, _, _ = await ready(api)
    for about in ({"document_id": document}, {}):
        answer = await ask(api, mode="base", **about)
        assert (answer["used"]["mode"], answer["used"]["km"], answer["used"]["passages"]) == ("base", None, [])
        assert LEAVE not in prompt_of(api)


@pytest.mark.parametrize(("gate", "mode"), [(OPEN_BOOK, "open_book"), ({"auto_mode": "retrieval"}, "retrieval"), ({}, "retrieval")])
async def test_auto_takes_the_module_only_where_its_gate_measured_it_better(api: Api, gate: dict[str, Any], mode: str) -> None:
    document, _, digest = await ready(api, gate=gate)
    answer = await ask(api, document_id=document)
    assert answer["used"]["mode"] == mode
    assert (answer["used"]["km"] or {}).get("digest") == (digest if mode == "open_book" else None)


async def test_auto_answers_by_retrieval_while_the_module_trains(api: Api) -> None:
    document = await api.uploaded()
    await api.index(document["id"], [LEAVE])
    assert (await ask(api, document_id=document["id"]))["used"]["mode"] == "retrieval"


async def test_asking_before_the_text_is_indexed_names_the_job(api: Api) -> None:
    document = await api.uploaded()
    for mode in ("auto", "retrieval", "in_context"):
        status, code, problem = await refused(api, document_id=document["id"], mode=mode)
        assert (status, code, problem["job"], problem["job_state"]) == (409, "not_retrievable", f"/jobs/{document['job']['id']}", "queued")


@pytest.mark.parametrize("mode", ["closed_book", "open_book"])
async def test_a_module_that_is_not_there_yet_is_refused_unless_retrieval_may_stand_in(api: Api, mode: str) -> None:
    document = await api.uploaded()
    await api.index(document["id"], [LEAVE])
    status, code, problem = await refused(api, document_id=document["id"], mode=mode)
    job = (await api.client.get(problem["job"])).json()
    assert (status, code, job["kind"], job["document_id"]) == (409, "module_not_ready", "train", document["id"])
    assert api.engine.requests == []
    answer = await ask(api, document_id=document["id"], mode=mode, fallback="retrieval")
    assert (answer["used"]["mode"], answer["used"]["km"]) == ("retrieval", None)


@pytest.mark.parametrize("mode", ["auto", "closed_book", "open_book", "retrieval", "in_context", "base"])
async def test_absent_foreign_and_deleted_documents_are_refused_alike(api: Api, mode: str) -> None:
    deleted = await api.uploaded("Soon gone.")
    await api.client.delete(f"/documents/{deleted['id']}")
    foreign = await api.uploaded(client=api.stranger)
    problems = []
    for document_id in ("doc_absent", foreign["id"], deleted["id"]):
        for about in ({"document_id": document_id}, {"document_ids": [document_id]}):
            status, code, problem = await refused(api, mode=mode, **about)
            assert (status, code) == (404, "document_not_found")
            problems.append({name: value for name, value in problem.items() if name != "request_id"})
    assert all(problem == problems[0] for problem in problems)
    assert api.engine.requests == []


async def test_one_unknown_document_among_several_is_refused(api: Api) -> None:
    document, _, _ = await ready(api)
    assert (await refused(api, document_ids=[document, "doc_absent"]))[1] == "document_not_found"


async def test_several_documents_are_led_by_the_one_with_most_passages(api: Api) -> None:
    leave, leave_passages, _ = await ready(api, (LEAVE, "Leave of staff is in days."), gate=OPEN_BOOK)
    travel, travel_passages, digest = await ready(
        api, (TRAVEL, "Travel by train from Basel.", "The office in Basel books."), gate=OPEN_BOOK
    )
    answer = await ask(api, document_ids=[leave, travel, leave], question="Who books trains from Basel?", top_k=4)
    assert answer["used"]["km"]["digest"] == digest
    assert set(answer["used"]["passages"]) < {*leave_passages, *travel_passages}
    assert {citation["document_id"] for citation in answer["citations"]} == {leave, travel}
    closed = await ask(api, document_ids=[leave, travel], question="Who books trains from Basel?", mode="closed_book")
    assert (closed["used"]["km"]["document_id"], closed["citations"]) == (travel, [])


async def test_without_a_document_all_that_the_key_may_read_are_asked(api: Api) -> None:
    document, passages, _ = await ready(api, gate=OPEN_BOOK)
    foreign = await api.uploaded("Other days.", client=api.stranger)
    await api.index(foreign["id"], ["Their leave is 99 days."], tenant="globex")
    answer = await ask(api)
    assert (answer["used"]["mode"], answer["used"]["km"]["document_id"]) == ("open_book", document)
    assert set(answer["used"]["passages"]) == set(passages)
    assert "99" not in prompt_of(api)


async def test_without_any_indexed_document_nothing_answers(api: Api) -> None:
    assert (await refused(api))[:2] == (409, "not_retrievable")
    assert api.engine.requests == []


async def test_a_leader_without_a_module_is_refused_or_answered_by_retrieval(api: Api) -> None:
    documents = [(await api.uploaded(text))["id"] for text in (LEAVE, TRAVEL)]
    for document, text in zip(documents, (LEAVE, TRAVEL), strict=True):
        await api.index(document, [text])
    assert (await refused(api, document_ids=documents, mode="open_book"))[1] == "module_not_ready"
    assert (await ask(api, document_ids=documents, mode="open_book", fallback="retrieval"))["used"]["mode"] == "retrieval"
    assert (await ask(api, document_ids=documents))["used"]["mode"] == "retrieval"


async def test_no_passages_can_be_asked_for(api: Api) -> None:
    document, _, _ = await ready(api)
    answer = await ask(api, document_id=document, mode="retrieval", top_k=0)
    assert (answer["used"]["mode"], answer["used"]["passages"]) == ("retrieval", [])


@pytest.mark.parametrize("asked", [{}, {"mode": "closed_book", "fallback": "retrieval"}, {"mode": "open_book", "fallback": "retrieval"}])
async def test_the_base_model_never_answers_in_a_modules_place(api: Api, asked: dict[str, Any]) -> None:
    document = (await api.uploaded(LEAVE))["id"]
    await api.index(document, [LEAVE])
    assert (await refused(api, document_id=document, top_k=0, **asked))[1] == "invalid_input"


async def test_passages_that_do_not_fit_are_dropped_worst_first(api: Api) -> None:
    long = f"{LEAVE} {'x ' * 700}"
    document, passages, _ = await ready(api, (LEAVE, long, TRAVEL))
    answer = await ask(api, document_id=document, mode="retrieval", max_tokens=900)
    used, dropped = answer["used"]["passages"], answer["used"]["dropped_passages"]
    assert used
    assert dropped
    assert set(used) | set(dropped) == set(passages)
    assert used[0] == passages[0]
    assert len(api.engine.requests[0].prompt) + 900 <= CONTEXT
    assert [citation["passage_id"] for citation in answer["citations"]] == used


@pytest.mark.parametrize("mode", ["base", "closed_book", "open_book", "retrieval", "in_context"])
async def test_a_prompt_longer_than_the_context_is_refused(api: Api, mode: str) -> None:
    document, _, _ = await ready(api)
    status, code, problem = await refused(api, document_id=document, mode=mode, question="how " * 1000)
    assert (status, code) == (422, "context_limit")
    assert problem["limit"] == CONTEXT
    assert problem["prompt_tokens"] > CONTEXT
    assert api.engine.requests == []


async def test_a_document_longer_than_the_context_is_not_cut_for_in_context(api: Api) -> None:
    document, _, _ = await ready(api, (LEAVE, "x" * 3000))
    assert (await refused(api, document_id=document, mode="in_context"))[1] == "context_limit"


async def test_a_document_much_longer_than_the_context_is_refused_before_it_is_read(api: Api) -> None:
    document, _, _ = await ready(api, (LEAVE, "x" * 5 * CONTEXT))
    for text in (api.parts.settings.root / "blobs").rglob("*.txt"):
        text.unlink()
    status, code, problem = await refused(api, document_id=document, mode="in_context", max_tokens=7)
    tokens = len(LEAVE) + 2 + 5 * CONTEXT + 2
    assert (status, code) == (422, "context_limit")
    assert (problem["prompt_tokens"], problem["max_tokens"], problem["limit"]) == (tokens, 7, CONTEXT)
    assert all(str(number) in problem["detail"] for number in (tokens, 7, CONTEXT))
