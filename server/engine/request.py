"""What goes into an engine and what comes out: frozen values and the `Engine` protocol. Knows nothing of HTTP, rows or files' names."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from server.engine.prompt import Prompt
from server.errors import KmserveError


class Scope(StrEnum):
    """Where adapters act: on every token, or only from the question's instruction on (the bare prefix is read by the bare base)."""

    ALL = "all"
    ANSWER = "answer"


class Tier(StrEnum):
    """Where an artefact is held, fastest first."""

    DEVICE = "device"
    HOST = "host"
    DISK = "disk"
    STORE = "store"
    """The object store below the disk."""


class FinishReason(StrEnum):
    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"


@dataclass(frozen=True, kw_only=True)
class ArtefactRef:
    """A knowledge module or extractor as the database knows it: what the files in `directory` must prove before a tensor is used.

    For an extractor `digest` is its lora digest and `composition` its composition digest; for a module `composition` is None.
    """

    digest: str
    manifest_sha256: str
    directory: Path
    scope: Scope = Scope.ALL
    composition: str | None = None


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """`temperature` 0 is greedy; `top_k` 0 is no bound. `stop` strings end the text and are not part of it. `logprobs` asks for each
    token's log-probability under the model's own distribution, and for that many likeliest alternatives."""

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    stop: tuple[str, ...] = ()
    logprobs: int | None = None


@dataclass(frozen=True, kw_only=True)
class EngineRequest:
    """One prompt with the adapters it wears: `module` (KM) and `extractor` (KE), either or both None.

    Nothing computed for one `tenant` is used for another. A request that is not done `timeout` seconds after it came fails with
    DeadlineExceeded.
    """

    request_id: str
    tenant: str
    prompt: Prompt
    module: ArtefactRef | None = None
    extractor: ArtefactRef | None = None
    sampling: Sampling = field(default_factory=Sampling)
    timeout: float | None = None


@dataclass(frozen=True, kw_only=True)
class TokenLogprob:
    """Natural logarithms. `top`: the likeliest tokens in falling order, each with its own."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Delta:
    """A piece of the answer. The last one carries `finish_reason` and the token counts; `logprobs` stand beside `token_ids` where the
    request asked for them."""

    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True, kw_only=True)
class Score:
    """Log-probabilities (natural log) of each token of one continuation given the prompt; no end-of-turn token is added."""

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]

    @property
    def total(self) -> float:
        return sum(self.logprobs)


class Engine(Protocol):
    """The seam between the service and whatever runs the model."""

    def submit(self, request: EngineRequest) -> AsyncIterator[Delta]:
        """Stream an answer. Raises ContextLimit, ArtefactRefused, TooManyRequests, EngineStopped before or within the stream.
        Closing the iterator cancels the request."""
        ...

    async def score(self, request: EngineRequest, continuations: Sequence[str]) -> list[Score]:
        """Token log-probabilities of each continuation after the prompt; `request.sampling` is ignored."""
        ...

    def cancel(self, request_id: str) -> None:
        """End a request; its stream closes with FinishReason.CANCELLED. Unknown ids are ignored."""
        ...

    def prefetch(self, artefact: ArtefactRef) -> None:
        """Start loading an artefact off the engine's thread; errors surface when it is used."""
        ...

    def evict(self, directory: Path, error: KmserveError) -> None:
        """Forget the artefact of this directory on every tier the engine holds: requests that wait for it fail with `error`, running
        ones finish on it. Equal bytes in another directory are another artefact and stay."""
        ...

    def forget(self, tenant: str) -> None:
        """Drop all cached state of a tenant's prompts and answers; requests in flight go on."""
        ...

    def stats(self) -> dict[str, float]: ...

    def residency(self) -> Mapping[Path, Tier]:
        """The fastest tier of each artefact that the engine holds, by its directory; any other is on the disk at best."""
        ...

    async def drain(self) -> None:
        """Refuse new requests, finish those in flight, stop the thread."""
        ...
