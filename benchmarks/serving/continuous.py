"""transformers' continuous batching on the base model; it knows no adapters per request."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from benchmarks.serving.figures import Trace
from benchmarks.serving.workload import Job

PAGE_TOKENS = 32
_NO_END = -1
"""No token has this id, so that none ends an answer."""


class ContinuousBatching:
    """Holds the model's attention while it lives: `run` starts it and puts the model back, for others run on the same one."""

    name = "transformers-cb"

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, most: int, tokens: int) -> None:
        """`most` requests of at most `tokens` tokens at once."""
        pages = -(-tokens // PAGE_TOKENS) + 1
        self._model: Any = model
        make: Any = GenerationConfig
        self._generation = make(do_sample=False, eos_token_id=_NO_END, pad_token_id=tokenizer.pad_token_id)
        # The defaults size the cache by the machine's whole memory, and masks by the cache.
        self._batching = ContinuousBatchingConfig(
            page_size=PAGE_TOKENS, num_blocks=most * pages, max_batch_tokens=max(512, most), max_requests_per_batch=most
        )

    def run(self, jobs: Sequence[Job]) -> list[Trace]:
        """Raises RuntimeError when it fails or stops without an answer to each."""
        with ExitStack() as stack:
            manager: Any = stack.enter_context(
                self._model.continuous_batching_context_manager(
                    generation_config=self._generation, continuous_batching_config=self._batching, warmup=True
                )
            )
            submitted = time.perf_counter()
            for number, job in enumerate(jobs):
                manager.add_request(
                    list(job.prompt.ids),
                    request_id=f"job-{number}",
                    max_new_tokens=job.new_tokens,
                    record_timestamps=True,
                    eos_token_id=_NO_END,
                )
            return [self._trace(self._next(manager), submitted) for _ in jobs]

    def close(self) -> None:
        """Nothing runs between rounds."""

    def _next(self, manager: Any) -> Any:
        while (output := manager.get_result(timeout=1)) is None or not output.is_finished():
            if output is None and not manager.is_running():
                raise RuntimeError("continuous batching stopped; its log says why")
        if output.error:
            raise RuntimeError(f"continuous batching failed: {output.error}")
        return output

    def _trace(self, output: Any, submitted: float) -> Trace:
        times = tuple(output.timestamps or ())
        finished = times[-1] if times else time.perf_counter()
        return Trace(submitted=submitted, finished=finished, pieces=times, tokens=len(output.generated_tokens))
