"""How much of the prompts the engine reads more than once: many questions over few documents, scope `answer`, documents' passages first.

`distinct` counts each position of each different beginning once; with scope `answer` a passage's keys and values are the bare base's, so
questions about one document share them whatever they wear, and tenants never do. `work` is what the engine computed.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import closing
from itertools import cycle, islice
from typing import Any

from benchmarks.serving.embedded import Embedded, request_of
from benchmarks.serving.figures import rounded
from benchmarks.serving.shelf import make_modules
from benchmarks.serving.systems import Workshop
from server.engine.base_model import BaseModel
from server.engine.prompt import answer_prompt, plain_ids
from server.engine.request import EngineRequest, Scope

DOCUMENTS = 4
QUESTIONS = 32
DOCUMENT_TOKENS = 384
NEW_TOKENS = 2
WANTED = 1.2
_FACTS = (
    "The {place} of {name} was opened in {year} and has {number} rooms.",
    "Its keeper in {year} was {name} the younger, who kept {number} ledgers.",
    "In the winter of {year} the {place} was closed for {number} days.",
    "{name} paid {number} crowns for the roof of the {place} in {year}.",
    "Of the {number} letters about the {place} that were written in {year}, {name} kept one.",
)
_PLACES = ("museum", "harbour", "library", "mill")
_NAMES = ("Anna Berg", "Otto Lind", "Mara Holt", "Jon Falk")
_ASKED = ("When was the {place} opened?", "Who was its keeper?", "How long was it closed?", "What did the roof of it cost?")


def measure_prefix(workshop: Workshop, told: Callable[[str], object]) -> dict[str, Any]:
    """Of one tenant, one question after the other and all of them together; of two tenants together."""
    base = workshop.plain()
    modules = make_modules(base, workshop.folder / "prefix", DOCUMENTS, scope=Scope.ANSWER)
    texts = [document(base, number, DOCUMENT_TOKENS) for number in range(DOCUMENTS)]
    found: dict[str, Any] = {"questions": QUESTIONS, "documents": DOCUMENTS, "document_tokens": DOCUMENT_TOKENS, "wanted": WANTED}
    for name, tenants, together in (("one_by_one", 1, 1), ("together", 1, QUESTIONS), ("two_tenants", 2, QUESTIONS)):
        told(f"prefix: {name.replace('_', ' ')}")
        requests = []
        for number, about in enumerate(islice(cycle(range(DOCUMENTS)), QUESTIONS)):
            prompt = answer_prompt(base.tokenizer, question(number), texts[about])
            tenant = f"tenant-{number // DOCUMENTS % tenants}"
            requests.append(request_of(prompt, modules[about], None, NEW_TOKENS, tenant))
        found[name] = _work(workshop, base, requests, together)
    return found


def document(base: BaseModel, number: int, tokens: int) -> list[str]:
    """Its passages, in its order."""
    passages: list[str] = []
    for turn in range(10_000):
        passage = _FACTS[turn % len(_FACTS)].format(**_values(number, turn))
        if passages and len(plain_ids(base.tokenizer, "\n\n".join([*passages, passage]))) > tokens:
            break
        passages.append(passage)
    return passages


def question(number: int) -> str:
    asked = _ASKED[number // DOCUMENTS % len(_ASKED)].format(place=_PLACES[number % len(_PLACES)])
    return f"{asked} Answer number {number} with the year."


def distinct_tokens(prompts: Iterable[tuple[Hashable, Iterable[Hashable]]]) -> int:
    """Positions that have to be computed once: `prompts` are (root, elements), and nothing is shared below different roots."""
    roots: dict[Hashable, Any] = {}
    count = 0
    for root, elements in prompts:
        node = roots.setdefault(root, {})
        for element in elements:
            count += element not in node
            node = node.setdefault(element, {})
    return count


def _work(workshop: Workshop, base: BaseModel, requests: Sequence[EngineRequest], together: int) -> dict[str, Any]:
    with closing(Embedded(base, workshop.options(max_batch=16, max_queue=QUESTIONS))) as engine:
        before = engine.stats()
        engine.answer(requests, together)
        after = engine.stats()
    work = after["prompt_tokens"] - before["prompt_tokens"]
    distinct = distinct_tokens((request.tenant, _elements(request)) for request in requests)
    hits = after.get("prefix_hit_tokens", 0.0) - before.get("prefix_hit_tokens", 0.0)
    return {
        "prompt_tokens": sum(len(request.prompt) for request in requests),
        "work": work,
        "distinct": distinct,
        "work_per_distinct": rounded(work / distinct),
        "prefix_hit_tokens": hits,
    }


def _elements(request: EngineRequest) -> list[Hashable]:
    """Each token with what reads it."""
    module = request.module.directory if request.module else None
    return [*((token, None) for token in request.prompt.bare), *((token, module) for token in request.prompt.adapted)]


def _values(number: int, turn: int) -> dict[str, object]:
    return {
        "place": _PLACES[number % len(_PLACES)],
        "name": _NAMES[(number + turn) % len(_NAMES)],
        "year": 1700 + 31 * number + turn,
        "number": 3 + 7 * turn + number,
    }
