"""A batch engine in the hands of a test: requests in, what they are told out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from server.engine.batch_engine import BatchEngine
from server.engine.prompt import Prompt
from server.engine.request import Delta, EngineRequest, FinishReason
from server.engine.sequence import Event
from server.modules.artefact import Artefact
from tests.support.oracle import Oracle
from tests.support.tiny_models import EOS

Make = Callable[..., BatchEngine]


@dataclass
class Ear:
    """Collects what one request is told."""

    events: list[Event] = field(default_factory=list)

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    @property
    def deltas(self) -> list[Delta]:
        return [event for event in self.events if isinstance(event, Delta)]

    @property
    def tokens(self) -> tuple[int, ...]:
        return tuple(token for delta in self.deltas for token in delta.token_ids)

    @property
    def reason(self) -> FinishReason | None:
        return self.deltas[-1].finish_reason if self.deltas else None

    @property
    def error(self) -> Exception:
        assert isinstance(self.events[-1], Exception)
        return self.events[-1]


def spoken(oracle: Oracle, prompt: Prompt, max_tokens: int, module: Artefact | None = None) -> tuple[int, ...]:
    """The oracle's greedy answer, without the end of the turn."""
    return tuple(token for token in oracle.greedy(prompt, max_tokens, module).tokens if token != EOS)


def start(engine: BatchEngine, request: EngineRequest) -> Ear:
    ear = Ear()
    engine.add(engine.generation(request, ear))
    return ear


def finish(engine: BatchEngine) -> None:
    while len(engine.scheduler):
        if not engine.step():
            engine.wait_for_load(1.0)


def answer(engine: BatchEngine, request: EngineRequest) -> Ear:
    ear = start(engine, request)
    finish(engine)
    return ear
