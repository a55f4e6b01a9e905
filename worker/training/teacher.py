"""The teacher's states, computed once: base model with the context, over every example, cached on disk and memory-mapped.

One file an example batch would tie the cache to an order; one file an example keeps it addressable and resumable. The final state is
stored at the compute precision (the KL is rebuilt from it), the layers in `LAYER_DTYPE`. A cache is of one reading (recipe.Reading), which
is not in its keys.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from worker.training.examples import Example
from worker.training.packing import Pack
from worker.training.recipe import Reading
from worker.training.states import OURS, Unworn, prefixes, prompt_states, target_states

LAYER_DTYPE = torch.bfloat16
BATCH = 8
"""Examples of one long context that pass together."""
PACK_TOKENS = 384
"""Of short contexts with their examples. A product of some hundred rows is as fast as one gets on a CPU."""


def example_key(example: Example) -> str:
    """Content address of an example: the same tokens give the same teacher."""
    return hashlib.sha256(repr((example.context.ids, example.target)).encode()).hexdigest()[:32]


class TeacherCache:
    """`layers` [L, N, H] and `final` [N, H] of each example, N = its target length."""

    def __init__(self, directory: Path, layer_dtype: torch.dtype = LAYER_DTYPE, kept: Sequence[int] | None = None) -> None:
        """`kept`: which of the states are stored, the last among them; None: all."""
        self._directory = directory
        self._layer_dtype = layer_dtype
        self._kept = kept
        directory.mkdir(parents=True, exist_ok=True)

    def has(self, example: Example) -> bool:
        return self._path(example).exists()

    def kept(self, states: Sequence[Tensor]) -> Sequence[Tensor]:
        """Those of a token's states that are stored."""
        return states if self._kept is None else [states[number] for number in self._kept]

    def put(self, example: Example, layers_LNH: Sequence[Tensor]) -> None:
        path = self._path(example)
        temporary = path.with_suffix(".tmp")
        layers = torch.stack([state.to(self._layer_dtype) for state in self.kept(layers_LNH)])
        save_file({"layers": layers.cpu().contiguous(), "final": layers_LNH[-1].cpu().contiguous()}, temporary)
        temporary.rename(path)

    def get(self, examples: Sequence[Example], device: torch.device) -> tuple[Tensor, Tensor]:
        """(layers [L, N, H], final [N, H]) of the examples one after the other, of memory-mapped files: no more than these are read."""
        layers, final = [], []
        for example in examples:
            with safe_open(self._path(example), framework="pt", device="cpu") as file:
                layers.append(file.get_tensor("layers"))
                final.append(file.get_tensor("final"))
        return torch.cat(layers, dim=1).to(device), torch.cat(final).to(device)

    def _path(self, example: Example) -> Path:
        return self._directory / f"{example_key(example)}.safetensors"


@torch.no_grad()
def run_teacher(
    body: nn.Module,
    examples: Sequence[Example],
    cache: TeacherCache,
    device: torch.device,
    step: Callable[[int, int], None],
    reading: Reading = OURS,
    unworn: Unworn | None = None,
) -> None:
    """Fill the cache. The bare prefix (header and context) of examples that share one is read once for all of them, or, where it is not
    longer than PACK_TOKENS, once a pack; within `unworn` where that is given. What passes together does not depend on what is cached, so
    that a run that goes on where one was killed stores the same numbers to the last bit.

    `step(done, total)` is called after every batch and may raise to stop; what is cached stays.
    """
    examples = list({example_key(example): example for example in examples}.values())
    done = sum(map(cache.has, examples))
    read: dict[tuple[int, ...], Pack] = {}
    for batch, long in _batches(examples):
        missing = sum(not cache.has(example) for example in batch)
        if not missing:
            continue
        targets = [e.target for e in batch]
        if not long:
            states = prompt_states(body, [e.context for e in batch], targets, device, unworn=unworn, reading=reading)
        else:
            bare = batch[0].context.bare
            if bare not in read:
                with (unworn or nullcontext)():
                    read = {bare: prefixes(body, [bare], device)}
            after = list(read[bare].paths) * len(batch)
            adapted = [e.context.adapted for e in batch]
            states = target_states(body, adapted, targets, device, before=read[bare], after=after, reading=reading)
        _store(cache, batch, states)
        done += missing
        step(done, len(examples))


def _batches(examples: Sequence[Example]) -> Iterator[tuple[Sequence[Example], bool]]:
    """Examples that pass together, and whether they are those of one long context. Short ones pass side by side."""
    groups: dict[tuple[int, ...], list[Example]] = {}
    for example in examples:
        groups.setdefault(example.context.bare, []).append(example)
    short: list[Example] = []
    tokens = 0
    for bare, group in groups.items():
        if len(bare) > PACK_TOKENS:
            yield from ((group[start : start + BATCH], True) for start in range(0, len(group), BATCH))
            continue
        for number, example in enumerate(group):
            more = len(example.context.adapted) + len(example.target) + (0 if number and short else len(bare))
            if short and tokens + more > PACK_TOKENS:
                yield short, False
                short, tokens = [], 0
                more = len(example.context) + len(example.target)
            short.append(example)
            tokens += more
    if short:
        yield short, False


def _store(cache: TeacherCache, batch: Sequence[Example], states: Sequence[Tensor]) -> None:
    offset = 0
    for example in batch:
        rows = slice(offset, offset + len(example.target))
        cache.put(example, [state[rows] for state in states])
        offset = rows.stop
