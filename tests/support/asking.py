"""Questions for tests: a document that is ready to be asked, and what came of asking."""

from __future__ import annotations

from typing import Any

from tests.support.api import Api

LEAVE, TRAVEL = "Staff get 31 days of leave.", "Trains are booked by the office in Basel."
QUESTION = "How many days of leave do staff get?"


async def ready(
    api: Api, texts: tuple[str, ...] = (LEAVE, TRAVEL), gate: dict[str, Any] | None = None, **module: Any
) -> tuple[str, list[str], str]:
    """A document with passages and a module: its id, its passages, its module's digest."""
    document = await api.uploaded("\n\n".join(texts), filename="policy.md")
    passages = await api.index(document["id"], texts)
    digest = await api.train(document["id"], gate=gate, **module)
    return document["id"], passages, digest


async def ask(api: Api, **body: Any) -> dict[str, Any]:
    response = await api.client.post("/ask", json={"question": QUESTION, **body})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


async def refused(api: Api, **body: Any) -> tuple[int, str, dict[str, Any]]:
    response = await api.client.post("/ask", json={"question": QUESTION, **body})
    problem = response.json()
    assert response.headers["content-type"] == "application/problem+json", response.text
    assert problem["status"] == response.status_code
    return response.status_code, problem["code"], problem


def prompt_of(api: Api) -> str:
    """What the engine was last asked, as bytes say it."""
    ids = api.engine.requests[-1].prompt.ids
    return str(api.parts.models.get().prompter._tokenizer.decode(list(ids)))
