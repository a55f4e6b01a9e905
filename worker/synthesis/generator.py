"""Generates with the serving engine, as a library, on the trainer's own base model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from server.engine.base_model import BaseModel
from server.engine.generate import generate_batch
from server.engine.options import EngineOptions
from server.engine.prompt import Prompt, instruction_prompt, plain_ids
from server.engine.request import EngineRequest, Sampling
from worker.synthesis.asks import Ask

PAIR_END = ("\n\n", "\nText:", "\nQuestion:")
"""A second text of one generation mostly repeats the first."""


class EngineGenerator:
    """`options.max_batch` bounds how many are generated together; `should_stop` is asked at every token step."""

    def __init__(self, base: BaseModel, options: EngineOptions, should_stop: Callable[[], bool]) -> None:
        self._base = base
        self._options = options
        self._should_stop = should_stop

    def __call__(self, asks: Sequence[Ask], on_finished: Callable[[int, str], None]) -> None:
        requests = [self._request(index, ask) for index, ask in enumerate(asks)]
        generate_batch(self._base, requests, options=self._options, on_finished=on_finished, should_stop=self._should_stop)

    def _request(self, index: int, ask: Ask) -> EngineRequest:
        return EngineRequest(
            request_id=str(index),
            tenant="trainer",
            prompt=self._prompt(ask),
            sampling=Sampling(
                max_tokens=ask.max_tokens,
                temperature=ask.temperature,
                top_p=ask.top_p,
                seed=ask.seed,
                stop=() if ask.instruction else PAIR_END,
            ),
        )

    def _prompt(self, ask: Ask) -> Prompt:
        tokenizer = self._base.tokenizer
        if ask.instruction:
            return instruction_prompt(tokenizer, ask.instruction, context=ask.context)
        return Prompt(bare=(), adapted=plain_ids(tokenizer, ask.plain_text))
