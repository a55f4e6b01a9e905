"""A random walk through all that can happen to an engine's modules and requests, each answer compared with the oracle's.

Two tenants own documents of the same text, with modules of their own, so that every kind of wrong sharing has something to share: the
same tokens under other adapters, the same tokens of another tenant, the same passages read by the bare base and by an adapter. Blocks
are small, and the border between bare and adapted lies within one.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import cache, partial

import torch

from server.engine.batch_engine import BatchEngine
from server.engine.options import EngineOptions
from server.engine.prompt import Prompt
from server.engine.request import ArtefactRef, EngineRequest, FinishReason, Sampling, Scope
from server.engine.sequence import Generation, Live
from server.errors import DocumentNotFound
from server.modules.artefact import Artefact
from tests.support.engines import Ear
from tests.support.oracle import Oracle
from tests.support.tiny_models import BYTES, EOS, Shelf, tiny_artefact, tiny_base

TENANTS = ("acme", "globex")
DOCUMENTS = 2
QUESTIONS = 2
VERSIONS = 2
TOKENS = 6
OPTIONS = EngineOptions(
    slots=3, max_batch=4, max_queue=100, step_tokens=16, kv_tokens=512, prefix_tokens=96, block_tokens=4, host_bytes=60_000
)
ACTIONS = {"step": 60, "ask": 25, "cancel": 4, "evict": 3, "republish": 3, "roll_back": 2, "delete": 2, "forget": 1}


class WrongAnswer(AssertionError):
    """A request was told something else than the oracle says."""


class Shared(AssertionError):
    """A request was given a block of another tenant."""


class Leak(AssertionError):
    """Something is held that nobody uses."""


@dataclass(frozen=True)
class Version:
    ref: ArtefactRef
    artefact: Artefact


@dataclass
class Asked:
    sequence: Generation
    module: Version | None
    extractor: Version | None
    ear: Ear
    tenant: str
    second_turn: bool


@dataclass
class Document:
    """`versions` are all that were ever trained, `current` is the one that answers."""

    tenant: str
    number: int
    versions: list[Version]
    current: int | None = 0
    last: Prompt | None = field(default=None)


class Walk:
    def __init__(self, seed: int, documents: int = DOCUMENTS) -> None:
        base = tiny_base("llama", torch.float64)
        self._random = random.Random(seed)
        self._oracle = Oracle(base)
        self._shelf = Shelf()
        self.engine = BatchEngine(base, OPTIONS, self._shelf.read)
        make = partial(tiny_artefact, base, size=2.0)
        scopes = (Scope.ALL, Scope.ANSWER)
        self._documents = [
            Document(
                tenant,
                number,
                [self._put(f"{tenant}-{number}-{v}", make(10 * t + 3 * number + v, scope=scopes[number % 2])) for v in range(VERSIONS)],
            )
            for t, tenant in enumerate(TENANTS)
            for number in range(documents)
        ]
        self._extractors = [self._put(f"extractor-{n}", make(100 + n, scope=scope, extractor=True)) for n, scope in enumerate(scopes)]
        self._asked: list[Asked] = []
        self.counts: Counter[str] = Counter()
        self._watch_owners()
        self._expected = cache(self._ask_oracle)

    def run(self, steps: int) -> None:
        """Raises WrongAnswer, Shared or Leak."""
        for _ in range(steps):
            [action] = self._random.choices(list(ACTIONS), list(ACTIONS.values()))
            getattr(self, f"_{action}")()
            self.counts[action] += 1
        while len(self.engine.scheduler):
            self._step()
        self._check_nothing_is_held()

    def close(self) -> None:
        self.engine.close()

    def _step(self) -> None:
        if not self.engine.step() and len(self.engine.scheduler):
            self.engine.wait_for_load(1.0)
        for asked in [asked for asked in self._asked if asked.ear.events and asked.sequence.complete]:
            self._asked.remove(asked)
            self._check(asked)
        self._asked = [asked for asked in self._asked if not _refused(asked)]

    def _ask(self) -> None:
        """A first question, with passages or without, or a second one behind the answer to the first."""
        if len(self._asked) > 8:
            return self._step()
        document = self._random.choice(self._documents)
        module = None if document.current is None or self._random.random() < 0.2 else document.versions[document.current]
        extractor = self._random.choice([None, *self._extractors])
        second = document.last is not None and self._random.random() < 0.4
        prompt = document.last if second and document.last else _prompt(document.number, self._random.randrange(QUESTIONS))
        if second:
            document.last = None
        self._submit(document.tenant, prompt, module, extractor, second)

    def _submit(self, tenant: str, prompt: Prompt, module: Version | None, extractor: Version | None, second: bool) -> None:
        request = EngineRequest(
            request_id=str(self._random.random()),
            tenant=tenant,
            prompt=prompt,
            module=module.ref if module else None,
            extractor=extractor.ref if extractor else None,
            sampling=Sampling(max_tokens=TOKENS),
        )
        ear = Ear()
        sequence = self.engine.generation(request, ear)
        self._asked.append(Asked(sequence, module, extractor, ear, tenant, second))
        self.engine.add(sequence)

    def _cancel(self) -> None:
        if self._asked:
            self.engine.cancel(self._random.choice(self._asked).sequence.request.request_id)

    def _evict(self) -> None:
        """What an operator or a damaged file does: the module leaves every tier and comes back with the next request."""
        version = self._random.choice(self._random.choice(self._documents).versions)
        self.engine.evict(version.ref.directory, DocumentNotFound("evicted"))

    def _republish(self) -> None:
        """The newest version answers from now on; those in flight finish on theirs."""
        self._random.choice(self._documents).current = VERSIONS - 1

    def _roll_back(self) -> None:
        document = self._random.choice(self._documents)
        document.current = 0

    def _delete(self) -> None:
        document = self._random.choice(self._documents)
        document.current, document.last = None, None
        for version in document.versions:
            self.engine.evict(version.ref.directory, DocumentNotFound("deleted"))
        self.engine.forget(document.tenant)

    def _forget(self) -> None:
        self.engine.forget(self._random.choice(TENANTS))

    def _check(self, asked: Asked) -> None:
        expected = self._expected(asked.sequence.request.prompt, asked.module, asked.extractor)
        told = asked.ear.tokens
        cancelled = asked.ear.reason is FinishReason.CANCELLED
        if told != (expected[: len(told)] if cancelled else expected):
            raise WrongAnswer(f"{asked.tenant}, {asked.module and asked.module.ref.digest}: {told}, not {expected}")
        self.counts["answers"] += not cancelled
        self.counts["second turns"] += asked.second_turn and not cancelled
        if not cancelled and not asked.second_turn:
            self._continue(asked)

    def _continue(self, asked: Asked) -> None:
        """The document's next question goes on from this answer."""
        document = self._random.choice([document for document in self._documents if document.tenant == asked.tenant])
        first = asked.sequence.request.prompt
        document.last = replace(first, adapted=(*first.adapted, *asked.ear.tokens, *_words(77, 5)))

    def _ask_oracle(self, prompt: Prompt, module: Version | None, extractor: Version | None) -> tuple[int, ...]:
        answer = self._oracle.greedy(prompt, TOKENS, module.artefact if module else None, extractor.artefact if extractor else None)
        return tuple(token for token in answer.tokens if token != EOS)

    def _check_nothing_is_held(self) -> None:
        stats, prefixes = self.engine.stats(), self.engine.scheduler.prefixes
        held = {name: stats[name] for name in ("waiting", "running", "kv_tokens_reserved") if stats[name]}
        users = [users for pool in (self.engine.adapters.modules, self.engine.adapters.extractors) for users in pool.users if users]
        if held or users or not prefixes.whole():
            raise Leak(f"{held}, {users}, {prefixes.stats()}")

    def _watch_owners(self) -> None:
        """Before a sequence takes blocks over: whose are they?"""
        scheduler = self.engine.scheduler
        reuse = scheduler._reuse

        def watched(sequence: Live) -> None:
            for key in sequence.keys(sequence.wanted):
                if scheduler.prefixes.owner(key) not in (None, sequence.request.tenant):
                    raise Shared(f"{sequence.request.tenant} finds a block of {scheduler.prefixes.owner(key)}")
            reuse(sequence)

        scheduler._reuse = watched  # type: ignore[method-assign]

    def _put(self, digest: str, artefact: Artefact) -> Version:
        return Version(self._shelf.put(digest, artefact), artefact)


def _refused(asked: Asked) -> bool:
    """Its module was evicted while it waited."""
    return bool(asked.ear.events) and isinstance(asked.ear.events[-1], DocumentNotFound)


@cache
def _prompt(document: int, question: int) -> Prompt:
    """A header and passages of the document, the border within a block of four, and a question."""
    return Prompt(bare=(BYTES, *_words(document, 12)), adapted=_words(50 + question, 5))


def _words(seed: int, count: int) -> tuple[int, ...]:
    source = random.Random(seed)
    return tuple(source.randrange(BYTES) for _ in range(count))
