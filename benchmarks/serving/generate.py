"""Static batches: transformers' `generate` on the bare base model, and PEFT's with one adapter name per row."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from benchmarks.serving.figures import Trace
from benchmarks.serving.workload import Job
from server.engine.apart import apart

_AS_THEY_ARE: Mapping[str, Any] = {"autocast_adapter_dtype": False, "low_cpu_mem_usage": True}


class Transformers:
    name = "transformers"

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self._model: Any = model
        self._tokenizer = tokenizer

    def run(self, jobs: Sequence[Job]) -> list[Trace]:
        """One left-padded batch; all rows have their tokens at the same times."""
        return apart(self._run, jobs)

    def _run(self, jobs: Sequence[Job]) -> list[Trace]:
        ids, mask = _padded([job.prompt.ids for job in jobs], int(self._tokenizer.pad_token_id), self._model.device)
        clock = Clock()
        submitted = time.perf_counter()
        with torch.no_grad():
            self._model.generate(
                input_ids=ids,
                attention_mask=mask,
                do_sample=False,
                min_new_tokens=jobs[0].new_tokens,
                max_new_tokens=jobs[0].new_tokens,
                pad_token_id=self._tokenizer.pad_token_id,
                streamer=clock,
                **self._options(jobs),
            )
        finished = time.perf_counter()
        pieces = tuple(clock.times)
        return [Trace(submitted=submitted, finished=finished, pieces=pieces, tokens=len(pieces)) for _ in jobs]

    def close(self) -> None:
        """Nothing runs."""

    def _options(self, jobs: Sequence[Job]) -> dict[str, Any]:
        return {}


class Peft(Transformers):
    """`folded[scenario][i]` holds module i, folded with the extractor where the scenario has one."""

    name = "peft"

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folded: Mapping[str, Sequence[Path]]) -> None:
        super().__init__(model, tokenizer)
        self._model = _with_adapters(model, folded)

    def _options(self, jobs: Sequence[Job]) -> dict[str, Any]:
        return {"adapter_names": [_adapter("km+ke" if job.extractor else "km", job.module or 0) for job in jobs]}


class Clock(BaseStreamer):  # type: ignore[misc, no-untyped-call, unused-ignore]
    """The time of each decoding step; what is put first is the prompt."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self._prompt = True

    def put(self, value: Tensor) -> None:
        if not self._prompt:
            self.times.append(time.perf_counter())
        self._prompt = False

    def end(self) -> None:
        """Known from the number of steps."""


def _with_adapters(model: PreTrainedModel, folded: Mapping[str, Sequence[Path]]) -> Any:
    """Adapters in the base's dtype: PEFT would compute those of a bfloat16 model in float32. None is drawn at random before it is read."""
    from peft import PeftModel

    wrapped: Any = None
    for scenario, directories in folded.items():
        for number, directory in enumerate(directories):
            name = _adapter(scenario, number)
            if wrapped is None:
                wrapped = PeftModel.from_pretrained(model, directory, adapter_name=name, **_AS_THEY_ARE)
            else:
                wrapped.load_adapter(directory, adapter_name=name, **_AS_THEY_ARE)
    if wrapped is None:
        raise ValueError("PEFT needs at least one folded module")
    wrong = {name for name, weight in wrapped.named_parameters() if "lora_" in name and weight.dtype != model.dtype}
    if wrong:
        raise ValueError(f"PEFT holds {min(wrong)} in another dtype than the base model's")
    return wrapped.eval()


def _adapter(scenario: str, number: int) -> str:
    return f"{scenario.replace('+', '_')}_{number}"


def _padded(prompts: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    longest = max(map(len, prompts))
    ids = [[pad] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def quiet() -> None:
    """Neither library's remarks belong into the table."""
    for name in ("transformers", "peft"):
        logging.getLogger(name).setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", module=name)
