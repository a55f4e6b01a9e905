"""The engine without thread or event loop: requests in, one step at a time, events out through each request's `emit`.

One thread makes all calls; `wake` is called from loader threads when an adapter has arrived. What goes wrong with one request ends
that request alone.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from server.engine.adapter_loader import Read, loader, memory_of
from server.engine.adapter_pool import AdapterPool, SlotPool
from server.engine.base_model import BaseModel
from server.engine.host_cache import AdapterKey, HostAdapter, HostCache
from server.engine.kv_cache import KvCache
from server.engine.options import EngineOptions
from server.engine.prefix_keys import KeyChain, adapter_ids, root_key
from server.engine.prompt import plain_ids
from server.engine.request import ArtefactRef, EngineRequest, Tier
from server.engine.runner import Runner
from server.engine.sampling import sample
from server.engine.scheduler import Scheduler, Work
from server.engine.sequence import NOT_FINITE, Emit, Generation, Live, Scoring, Status
from server.errors import ContextLimit, DeadlineExceeded, InvalidInput, KmserveError, TooManyRequests, Unavailable
from server.modules.artefact import read_artefact

logger = logging.getLogger(__name__)

MOST_LOGPROBS = 20


class BatchEngine:
    def __init__(
        self,
        base: BaseModel,
        options: EngineOptions,
        read: Read = read_artefact,
        wake: Callable[[], None] = lambda: None,
        below: Read | None = None,
    ) -> None:
        """Holds the model until `close`. `below` reads artefacts that are not on the disk. Raises ValueError for a model that the engine
        cannot serve."""
        self.base = base
        self.options = options
        self.limit = min(base.context_limit, options.kv_tokens)
        self._vocabulary = int(base.model.config.get_text_config().vocab_size)
        self.runner = Runner(base, options)
        self.adapters = AdapterPool(self.runner.modules, self.runner.extractors)
        memory = memory_of(base)
        load = partial(loader, base, self.runner.layers, options.max_rank, memory=memory)
        self.host = HostCache(load(read), options.host_bytes, None if below is None else load(below), afterwards=memory.renew)
        self.scheduler = Scheduler(options, self.adapters, KvCache(options.kv_tokens, keep=self.runner.decoding is not None), self._fetch)
        self._counts = {"steps": 0.0, "step_seconds": 0.0, "prompt_tokens": 0.0, "generated_tokens": 0.0, "ended": 0.0, "failed": 0.0}
        self._wake = wake

    def generation(self, request: EngineRequest, emit: Emit) -> Generation:
        """A checked request, not yet in the queue. Raises ContextLimit or InvalidInput."""
        self._check(request, request.sampling.max_tokens)
        sequence = Generation(request, self.base.tokenizer, self.base.eos_ids, emit)
        sequence.chain = self._chain(request)
        return sequence

    def scoring(self, request: EngineRequest, continuations: Sequence[str], emit: Emit) -> Scoring:
        """Like `generation`; `request.sampling` is ignored."""
        return self.scoring_tokens(request, [(text, plain_ids(self.base.tokenizer, text)) for text in continuations], emit)

    def scoring_tokens(self, request: EngineRequest, continuations: Sequence[tuple[str, tuple[int, ...]]], emit: Emit) -> Scoring:
        """Of continuations that are tokens already, each with the text that its score will name."""
        self._check(request, max((len(ids) for _, ids in continuations), default=0))
        sequence = Scoring(request, continuations, emit)
        sequence.chain = self._chain(request)
        return sequence

    def add(self, sequence: Live) -> None:
        """Queue it and start loading what it wears; a full queue fails it with TooManyRequests."""
        if len(self.scheduler) >= self.options.max_batch + self.options.max_queue:
            sequence.emit(TooManyRequests("The engine's queue is full; try again later.", retry_after=self._retry_after()))
            return
        if isinstance(sequence, Scoring) and sequence.complete:
            sequence.tell()
            return
        sequence.added_at = sequence.loaded_at = time.perf_counter()
        self._fetch(sequence)
        self.scheduler.add(sequence)

    def prefetch(self, ref: ArtefactRef) -> None:
        """For any thread: have it loaded for a request that is to come, unless that finds it in a slot."""
        if AdapterKey.of(ref) not in self.adapters.keys or self.host.peek(ref) is not None:
            self.host.prefetch(ref)

    def step(self) -> bool:
        """One forward pass over all that can run; False if nothing can before a load is done. The engine in five lines."""
        self._expel()
        self._adjust_threads()
        works = self._plan()
        self._advance(self._compute(works))
        return bool(works)

    def wait_for_load(self, seconds: float) -> None:
        """Block until an adapter that some request waits for is there."""
        wait([load for sequence in self.scheduler.waiting for load in sequence.loads if not load.done()], seconds, FIRST_COMPLETED)

    def cancel(self, request_id: str) -> None:
        for sequence in self.scheduler:
            if sequence.request.request_id == request_id:
                sequence.cancelled = True

    def cancel_all(self) -> None:
        for sequence in self.scheduler:
            sequence.cancelled = True

    def evict(self, directory: Path, error: KmserveError) -> None:
        """Whoever waits holds the tensors already and would bring them back into a slot: it fails with `error`."""
        self.host.evict(directory)
        self.adapters.evict(directory)
        for sequence in [waiting for waiting in self.scheduler.waiting if waiting.names(directory)]:
            self._fail(sequence, error)

    def forget(self, tenant: str) -> None:
        """Drop what is cached of a tenant's prompts and answers; what its requests in flight compute is not kept either."""
        for sequence in self.scheduler:
            if sequence.request.tenant == tenant:
                sequence.chain = None
        self.scheduler.prefixes.forget(tenant)

    def fail_all(self, error: KmserveError) -> None:
        for sequence in list(self.scheduler):
            self._fail(sequence, error)

    def close(self) -> None:
        """Put the model back as it was."""
        self.host.close()
        self.runner.close()

    def stats(self) -> dict[str, float]:
        return {
            **self._counts,
            "waiting": float(len(self.scheduler.waiting)),
            "running": float(len(self.scheduler.running)),
            "kv_tokens_reserved": float(self.scheduler.cache.reserved),
            "load_wait_seconds": self.scheduler.load_wait,
            **self.runner.stats(),
            **{f"prefix_{name}": value for name, value in self.scheduler.prefixes.stats().items()},
            **self.adapters.stats(),
            **{f"host_{name}": value for name, value in self.host.stats().items()},
        }

    def residency(self) -> dict[Path, Tier]:
        """For any thread."""
        return {**dict.fromkeys(self.host.directories(), Tier.HOST), **dict.fromkeys(self.adapters.resident, Tier.DEVICE)}

    def _fetch(self, sequence: Live) -> None:
        request = sequence.request
        sequence.module = self._find(request.module, self.adapters.modules) if request.module else None
        sequence.extractor = self._find(request.extractor, self.adapters.extractors) if request.extractor else None
        for load in [load for load in sequence.loads if not load.done()]:
            load.add_done_callback(partial(self._loaded, sequence))

    def _find(self, ref: ArtefactRef, slots: SlotPool) -> Future[HostAdapter]:
        """In host memory or, where it has left that, in a slot; else from the disk, later."""
        resident, held = slots.find(ref), self.host.peek(ref)
        if resident is None or held is not None:
            return self.host.fetch(ref)
        found: Future[HostAdapter] = Future()
        found.set_result(resident)
        return found

    def _loaded(self, sequence: Live, _: Future[HostAdapter]) -> None:
        sequence.note_load()
        self._wake()

    def _expel(self) -> None:
        """End those that were cancelled, are late or whose adapters could not be loaded."""
        now = time.monotonic()
        for sequence in list(self.scheduler):
            if sequence.cancelled:
                self._guarded(sequence, sequence.abandon)
            elif sequence.expires < now:
                self._fail(sequence, _too_late(sequence))
            elif sequence.status is Status.WAITING and (error := sequence.load_error()):
                self._fail(sequence, error)

    def _plan(self) -> list[Work]:
        try:
            return self.scheduler.plan()
        except Exception as error:
            # The one that was about to join: those before it have joined, those behind it were not looked at.
            culprit = self.scheduler.next
            if culprit is None:
                raise
            self._fail(culprit, error)
            return self._plan()

    def _compute(self, works: Sequence[Work]) -> list[tuple[Work, Tensor]]:
        """Each work with its wanted logits. When a step fails, its sequences run one by one and only the failing ones end."""
        if not works:
            return []
        started = time.perf_counter()
        try:
            logits = self.runner.run(works)
        except Exception as error:
            if len(works) > 1:
                return [pair for work in works for pair in self._compute([work])]
            self._fail(works[0].sequence, error)
            return []
        self._counts["steps"] += 1
        self._counts["step_seconds"] += time.perf_counter() - started
        self._counts["prompt_tokens"] += sum(work.end - work.start for work in works if work.start < len(work.sequence.request.prompt))
        return list(zip(works, torch.split(logits, [work.logits for work in works]), strict=True))

    def _advance(self, computed: Sequence[tuple[Work, Tensor]]) -> None:
        """Draw the next tokens and hand logits to those that score."""
        drawing: list[tuple[Generation, Tensor]] = []
        for work, logits in computed:
            sequence = work.sequence
            sequence.computed = work.end
            if work.start < len(sequence.request.prompt):
                self.scheduler.publish(sequence, work.end)
            if isinstance(sequence, Generation) and len(logits):
                drawing.append((sequence, logits))
            elif isinstance(sequence, Scoring) and len(logits):
                self._guarded(sequence, partial(sequence.accept, logits))
        if drawing:
            self._draw([sequence for sequence, _ in drawing], torch.cat([logits for _, logits in drawing]))

    def _draw(self, sequences: Sequence[Generation], logits: Tensor) -> None:
        self._counts["generated_tokens"] += len(sequences)
        tokens = sample(logits, [sequence.draw for sequence in sequences])
        for sequence, token, row in zip(sequences, tokens, logits, strict=True):
            self.scheduler.turns.charge(sequence.request.tenant, 1)
            if token is None:
                self._fail(sequence, Unavailable(NOT_FINITE))
            else:
                self._guarded(sequence, partial(sequence.accept, token, row))

    def _guarded(self, sequence: Live, action: Callable[[], None]) -> None:
        """Let a sequence act, then let it go if it is complete or failed."""
        try:
            action()
        except Exception as error:
            self._fail(sequence, error)
        if sequence.complete and sequence.status is not Status.FINISHED:
            self._remove(sequence)

    def _fail(self, sequence: Live, error: Exception) -> None:
        self._remove(sequence)
        self._counts["failed"] += 1
        if not isinstance(error, KmserveError):
            logger.error("request %s failed", sequence.request.request_id, exc_info=error)
            error = Unavailable("The engine could not run this request; try again.")
        sequence.emit(error)

    def _remove(self, sequence: Live) -> None:
        self._counts["ended"] += 1
        self.scheduler.remove(sequence)

    def _chain(self, request: EngineRequest) -> KeyChain | None:
        """The names of a request's blocks in the prefix cache."""
        if not self.options.prefix_tokens:
            return None
        root = root_key(request.tenant, self.base.fingerprint, str(self.base.dtype))
        return KeyChain(root, adapter_ids(request), self.options.block_tokens)

    def _adjust_threads(self) -> None:
        wanted = self.options.cores.threads() if self.options.cores else self.options.threads
        if wanted is not None and wanted != torch.get_num_threads():
            torch.set_num_threads(wanted)

    def _retry_after(self) -> int:
        """Seconds until a place is free, from what a request has taken so far."""
        return min(60, math.ceil((self._counts["step_seconds"] + 1) / (self._counts["ended"] + 1)))

    def _check(self, request: EngineRequest, new_tokens: int) -> None:
        prompt, sampling = request.prompt, request.sampling
        if not len(prompt) or not all(0 <= token < self._vocabulary for token in prompt.ids):
            raise InvalidInput("The prompt is empty or holds token ids that the model does not know.")
        if sampling.max_tokens < 1 or not 0 <= sampling.temperature < math.inf or not 0 < sampling.top_p <= 1:
            raise InvalidInput("max_tokens must be at least 1, temperature at least 0 and top_p above 0 and at most 1.")
        if sampling.top_k < 0 or not 0 <= (sampling.logprobs or 0) <= MOST_LOGPROBS:
            raise InvalidInput(f"top_k must be at least 0 and logprobs at least 0 and at most {MOST_LOGPROBS}.")
        if len(prompt) + new_tokens > self.limit:
            raise ContextLimit(
                f"The prompt has {len(prompt)} tokens and the answer may have {new_tokens}; the model's context is {self.limit}. "
                "Ask for a shorter answer, or with fewer or shorter passages.",
                prompt_tokens=len(prompt),
                max_tokens=new_tokens,
                limit=self.limit,
            )


def _too_late(sequence: Live) -> DeadlineExceeded:
    return DeadlineExceeded(f"The answer was not complete within {sequence.request.timeout:g} seconds; ask again, or for a shorter answer.")
