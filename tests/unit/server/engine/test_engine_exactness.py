"""The engine against the PEFT oracle: five families, mixed batches, joins at different steps, every precision.

A batch holds base requests, modules and extractors alone and together, both scopes, several ranks. The zoo makes sure that every two
of these wardrobes answer the same prompt differently; otherwise agreement would prove nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from server.engine.base_model import BaseModel
from server.engine.batch_engine import BatchEngine
from server.engine.options import EngineOptions
from server.engine.prompt import Prompt
from server.engine.request import ArtefactRef, Scope
from server.engine.scheduler import Work
from server.engine.sequence import Event, Generation
from server.modules.artefact import Artefact
from tests.support.oracle import Oracle
from tests.support.tiny_models import FAMILIES, Shelf, tiny_artefact, tiny_base, tiny_prompt, tiny_request

TOKENS = 8
ROOMY = EngineOptions(slots=8, max_batch=16, step_tokens=24)
"""All modules fit: their tokens go through one batched product."""
TIGHT = EngineOptions(slots=2, max_batch=3, step_tokens=7, kv_tokens=512)
"""Slots are reused within the batch, prompts are read in small pieces."""
FIXED = replace(ROOMY, static_decode=True)
"""Decoding as a CUDA graph would record it."""
MODULES = [(1, Scope.ALL), (2, Scope.ANSWER), (3, Scope.ALL), (4, Scope.ANSWER), (6, Scope.ALL), (8, Scope.ANSWER)]
EXTRACTORS = [(3, Scope.ALL), (5, Scope.ANSWER)]
WARDROBES: list[tuple[int | None, int | None]] = [
    (None, None),
    *((module, None) for module in range(len(MODULES))),
    (0, 0),
    (1, 0),
    (2, 1),
    (3, 1),
    (None, 0),
    (None, 1),
]
"""Module and extractor of each request."""


@dataclass(frozen=True)
class Wardrobe:
    module: Artefact | None
    extractor: Artefact | None
    module_ref: ArtefactRef | None
    extractor_ref: ArtefactRef | None


@dataclass(frozen=True)
class Zoo:
    family: str
    base: BaseModel
    oracle: Oracle
    shelf: Shelf
    wardrobes: list[Wardrobe]


def zoo_of(family: str, size: float) -> Zoo:
    base = tiny_base(family, torch.float64)
    modules = [tiny_artefact(base, seed, rank=rank, scope=scope, size=size) for seed, (rank, scope) in enumerate(MODULES)]
    extractors = [
        tiny_artefact(base, 100 + seed, rank=rank, scope=scope, size=size, extractor=True) for seed, (rank, scope) in enumerate(EXTRACTORS)
    ]
    shelf = Shelf()
    module_refs = [shelf.put(f"module-{number}", artefact) for number, artefact in enumerate(modules)]
    extractor_refs = [shelf.put(f"extractor-{number}", artefact) for number, artefact in enumerate(extractors)]
    wardrobes = [
        Wardrobe(
            module=None if module is None else modules[module],
            extractor=None if extractor is None else extractors[extractor],
            module_ref=None if module is None else module_refs[module],
            extractor_ref=None if extractor is None else extractor_refs[extractor],
        )
        for module, extractor in WARDROBES
    ]
    return Zoo(family, base, Oracle(base), shelf, wardrobes)


def in_precision(zoo: Zoo, dtype: torch.dtype) -> Zoo:
    base = tiny_base(zoo.family, dtype)
    return replace(zoo, base=base, oracle=zoo.oracle.cast(base))


def answers_differ(zoo: Zoo) -> bool:
    prompt = tiny_prompt(1000)
    answers = [zoo.oracle.greedy(prompt, TOKENS, wardrobe.module, wardrobe.extractor).tokens for wardrobe in zoo.wardrobes]
    return len(set(answers)) == len(answers)


@pytest.fixture(scope="module", params=list(FAMILIES))
def zoo(request: pytest.FixtureRequest) -> Zoo:
    """In float64, its random adapters large enough for all wardrobes to answer differently."""
    zoos = (zoo_of(request.param, size) for size in (1.0, 2.0, 4.0))
    zoo = next((zoo for zoo in zoos if answers_differ(zoo)), None)
    assert zoo is not None, "some adapters change nothing: these tests would prove nothing"
    return zoo


@dataclass(frozen=True)
class Told:
    prompt: Prompt
    wardrobe: Wardrobe
    tokens: tuple[int, ...]
    logits: Tensor


def run_mixed(zoo: Zoo, options: EngineOptions, monkeypatch: pytest.MonkeyPatch) -> list[Told]:
    """Every wardrobe with a prompt of its own, one joining at each step; tokens and the logits that they were chosen from."""
    engine = BatchEngine(zoo.base, options, zoo.shelf.read)
    recorded: dict[str, list[Tensor]] = {}
    monkeypatch.setattr(engine.runner, "run", recording(engine.runner.run, recorded))
    sequences: list[Generation] = []
    try:
        for number, wardrobe in enumerate(zoo.wardrobes):
            prompt = tiny_prompt(number, bare=3 + 2 * number, adapted=4 + number % 5)
            request = tiny_request(str(number), prompt, wardrobe.module_ref, wardrobe.extractor_ref, max_tokens=TOKENS)
            sequences.append(engine.generation(request, raise_failure))
            engine.add(sequences[-1])
            engine.step()
        while len(engine.scheduler):
            if not engine.step():
                engine.wait_for_load(1.0)
    finally:
        engine.close()
    assert not engine.stats().get("decode_failed")
    return [
        Told(sequence.request.prompt, wardrobe, tuple(sequence.tokens[len(sequence.request.prompt) :]), torch.stack(recorded[str(number)]))
        for number, (sequence, wardrobe) in enumerate(zip(sequences, zoo.wardrobes, strict=True))
    ]


def recording(run: Callable[[list[Work]], Tensor], recorded: dict[str, list[Tensor]]) -> Callable[[list[Work]], Tensor]:
    def recorder(works: list[Work]) -> Tensor:
        logits = run(works)
        for work, rows in zip(works, torch.split(logits, [work.logits for work in works]), strict=True):
            recorded.setdefault(work.sequence.request.request_id, []).extend(rows)
        return logits

    return recorder


def raise_failure(event: Event) -> None:
    if isinstance(event, Exception):
        raise event


def expected_logits(zoo: Zoo, told: Told) -> Tensor:
    return zoo.oracle.follow(told.prompt, told.tokens, told.wardrobe.module, told.wardrobe.extractor)


@pytest.mark.parametrize("options", [ROOMY, TIGHT, FIXED], ids=["roomy", "tight", "fixed"])
def test_float64_agrees_without_exception(zoo: Zoo, options: EngineOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    for told in run_mixed(zoo, options, monkeypatch):
        expected = expected_logits(zoo, told)
        assert float((told.logits - expected).abs().max()) <= 1e-9
        assert told.tokens == tuple(expected.argmax(-1).tolist()), "each token is the oracle's choice after the same tokens"


def test_float32_agrees_within_rounding(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    zoo = in_precision(zoo, torch.float32)
    for told in run_mixed(zoo, ROOMY, monkeypatch):
        expected = expected_logits(zoo, told)
        assert float((told.logits - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


def test_bfloat16_chooses_alike_where_the_oracle_is_sure(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    zoo = in_precision(zoo, torch.bfloat16)
    sure = 0
    for told in run_mixed(zoo, ROOMY, monkeypatch):
        best = expected_logits(zoo, told).float().topk(2, dim=-1)
        clear = best.values[:, 0] - best.values[:, 1] > 0.25
        sure += int(clear.sum())
        assert torch.equal(told.logits.argmax(-1)[clear], best.indices[clear, 0])
    assert sure > 20
