"""One request on its way through the engine: its tokens, how far they are computed, what it holds and whom it tells.

    WAITING ──> RUNNING ──> FINISHED
       └─────────────────────^

`Generation` grows its tokens by sampling; `Scoring` walks through given continuations over one prompt. Knows nothing of batches,
devices or threads, but that `cancelled` may be set from any thread.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from enum import StrEnum
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from server.engine.adapter_pool import Outfit
from server.engine.detokeniser import Detokeniser
from server.engine.host_cache import HostAdapter
from server.engine.kv_cache import KvRow
from server.engine.prefix_keys import KeyChain
from server.engine.request import Delta, EngineRequest, FinishReason, Score, TokenLogprob
from server.engine.sampling import Draw, token_logprob
from server.errors import Unavailable

Event = Delta | list[Score] | Exception
"""An exception or a list of scores is the last event of a sequence, as is a delta with a finish reason."""
Emit = Callable[[Event], None]
NOT_FINITE = "The model's output is not finite; the module may be broken. Train it again."


class Status(StrEnum):
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


_NEXT = {Status.WAITING: {Status.RUNNING, Status.FINISHED}, Status.RUNNING: {Status.FINISHED}, Status.FINISHED: set[Status]()}


class Live(ABC):
    """What generating and scoring share. `tokens` are to be computed from `computed` on; logits are wanted from `wanted` on."""

    def __init__(self, request: EngineRequest, reserve: int, emit: Emit) -> None:
        self.request = request
        self.reserve = reserve
        """Positions it may ever take."""
        self.emit = emit
        self.status = Status.WAITING
        self.cancelled = False
        self.complete = False
        self.tokens = list(request.prompt.ids)
        self.computed = 0
        self.written = 0
        """Positions whose keys and values were stored at some time."""
        self.shared = 0
        """Blocks from the start that others can use, as far as this sequence has seen to it."""
        self.added_at = self.loaded_at = 0.0
        """When it came and when the last of its adapters was in host memory, by `time.perf_counter`."""
        self.module: Future[HostAdapter] | None = None
        self.extractor: Future[HostAdapter] | None = None
        self.outfit = Outfit()
        self.held: KvRow | None = None
        self.chain: KeyChain | None = None
        """Names this sequence's blocks in the prefix cache; None keeps it out of there."""
        self.expires = math.inf if request.timeout is None else time.monotonic() + request.timeout

    @property
    @abstractmethod
    def wanted(self) -> int: ...

    @property
    def cost(self) -> int:
        """Tokens that its tenant is charged for when it joins."""
        return len(self.tokens)

    def keys(self, end: int) -> list[bytes]:
        """Of the whole blocks before position `end`, which may be shared."""
        return [] if self.chain is None else self.chain.keys(self.tokens, end)

    @property
    def loads(self) -> list[Future[HostAdapter]]:
        return [load for load in (self.module, self.extractor) if load is not None]

    @property
    def loaded(self) -> bool:
        return all(load.done() for load in self.loads)

    def note_load(self) -> None:
        """Called by whichever thread ends a load."""
        if self.loaded:
            self.loaded_at = time.perf_counter()

    def forget_loads(self) -> None:
        """They are in its slots, or of no use: what host memory has no room for goes."""
        self.module = self.extractor = None

    def names(self, directory: Path) -> bool:
        """Whether the request asked to wear the artefact of this directory."""
        return any(ref is not None and ref.directory == directory for ref in (self.request.module, self.request.extractor))

    def load_error(self) -> Exception | None:
        """Why an adapter could not be loaded, as far as is known by now."""
        errors = [load.exception() for load in self.loads if load.done()]
        return next((error for error in errors if isinstance(error, Exception)), None)

    def move(self, status: Status) -> None:
        assert status in _NEXT[self.status], f"{self.status} -> {status}"
        self.status = status

    def abandon(self) -> None:
        """Tell the listener that it was cancelled."""
        self.complete = True
        self.emit(Delta(text="", finish_reason=FinishReason.CANCELLED, prompt_tokens=len(self.request.prompt)))


class Generation(Live):
    def __init__(self, request: EngineRequest, tokenizer: PreTrainedTokenizerBase, eos: Collection[int], emit: Emit) -> None:
        super().__init__(request, len(request.prompt) + request.sampling.max_tokens, emit)
        self.draw = Draw(request.sampling)
        self._eos = eos
        self._text = Detokeniser(tokenizer, request.sampling.stop)
        self._unsent: list[int] = []
        self._logprobs: list[TokenLogprob] = []

    @property
    def wanted(self) -> int:
        return len(self.tokens) - 1

    @property
    def generated(self) -> int:
        return len(self.tokens) - len(self.request.prompt)

    def accept(self, token: int, logits_V: Tensor) -> None:
        """Append a token sampled from `logits_V` and tell the text that it makes certain. The token that ends a turn is counted, not
        told."""
        self.tokens.append(token)
        if token in self._eos:
            self._end(self._text.finish(), FinishReason.STOP)
            return
        self._unsent.append(token)
        if (alternatives := self.request.sampling.logprobs) is not None:
            self._logprobs.append(token_logprob(logits_V, token, alternatives))
        text = self._text.push(token)
        if self._text.stopped:
            self._end(text, FinishReason.STOP)
        elif self.generated == self.request.sampling.max_tokens:
            text += self._text.finish()
            self._end(text, FinishReason.STOP if self._text.stopped else FinishReason.LENGTH)
        elif text:
            self._tell(text, None)

    def abandon(self) -> None:
        self._end(self._text.finish(), FinishReason.CANCELLED)

    def _end(self, text: str, reason: FinishReason) -> None:
        self.complete = True
        self._tell(text, reason)

    def _tell(self, text: str, reason: FinishReason | None) -> None:
        ids, self._unsent = tuple(self._unsent), []
        logprobs, self._logprobs = tuple(self._logprobs), []
        counts = {"prompt_tokens": len(self.request.prompt), "completion_tokens": self.generated}
        self.emit(Delta(text=text, token_ids=ids, logprobs=logprobs, finish_reason=reason, **counts))


class Scoring(Live):
    """The prompt is read once; each further continuation starts over at the prompt's last token."""

    def __init__(self, request: EngineRequest, continuations: Sequence[tuple[str, tuple[int, ...]]], emit: Emit) -> None:
        longest = max((len(ids) for _, ids in continuations), default=0)
        super().__init__(request, len(request.prompt) + longest, emit)
        self._continuations = continuations
        self._scores: list[Score] = []
        self._logprobs: list[float] = []
        self._start_next()

    @property
    def wanted(self) -> int:
        return len(self.request.prompt) - 1

    @property
    def cost(self) -> int:
        return len(self.request.prompt) + sum(len(ids) for _, ids in self._continuations)

    def keys(self, end: int) -> list[bytes]:
        """Of the prompt alone: what stands behind it changes."""
        return super().keys(min(end, self.wanted))

    def accept(self, logits_NV: Tensor) -> None:
        """Logits of the next `N` positions from `wanted` on."""
        text, ids = self._continuations[len(self._scores)]
        told = len(self._logprobs)
        targets = torch.tensor(ids[told : told + len(logits_NV)], device=logits_NV.device)
        precise = logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float()
        logprobs = torch.log_softmax(precise, dim=-1).gather(1, targets[:, None])[:, 0]
        if logprobs.isnan().any():
            raise Unavailable(NOT_FINITE)
        self._logprobs += logprobs.tolist()
        if len(self._logprobs) == len(ids):
            self._scores.append(Score(text=text, token_ids=ids, logprobs=tuple(self._logprobs)))
            self._start_next()
            if self.complete:
                self.tell()

    def tell(self) -> None:
        self.emit(self._scores)

    def _start_next(self) -> None:
        """Continue with the next continuation that has tokens; complete after the last one."""
        while len(self._scores) < len(self._continuations):
            text, ids = self._continuations[len(self._scores)]
            if ids:
                self.tokens = [*self.request.prompt.ids, *ids[:-1]]
                self.computed = min(self.computed, self.wanted)
                self._logprobs = []
                return
            self._scores.append(Score(text=text, token_ids=(), logprobs=()))
        self.complete = True
