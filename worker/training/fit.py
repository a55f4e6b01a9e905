"""The fit: batches in an order that is a pure function of (seed, step), AdamW, warm-up and decay, held-out evaluation, best
checkpoint, early stop. Knows nothing of files but the checkpoint's, of jobs only a callback that may raise `Stopped`, of objectives and
of what is worn only a loss over examples."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from worker.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from worker.training.examples import Example
from worker.training.recipe import Schedule

MICRO_LENGTH = 256
"""Tokens. What a micro-batch takes grows with its tokens; examples of texts that a base answers with are shorter than this."""

B_FACTOR = ".lora_b"
"""Ends the names of parameters that learn at `b_rate` times the rate of others."""


Loss = Callable[[Sequence[Example]], Tensor]
"""Of a micro-batch, mean over its target tokens; differentiable in the student's parameters."""


class Trainable(Protocol):
    """What is fitted: a student of a module, or of an extractor."""

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """Trainable tensors in an order that never depends on hashing."""
        ...

    def factors(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """(A by layer [r, in], B by layer [out, r]), copies on the CPU."""
        ...

    def train(self, mode: bool) -> None: ...


class Stopped(Exception):
    """Raised by a callback to leave the run; the fit checkpoints first."""


@dataclass(kw_only=True)
class FitState:
    step: int = 0
    best_loss: float = math.inf
    best_step: int = 0
    held_out: list[tuple[int, float]] = field(default_factory=list)
    """(step, loss) of every evaluation; step 0 is the untrained student."""
    losses: list[float] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class FitResult:
    a: dict[str, Tensor]
    b: dict[str, Tensor]
    loss_before: float
    loss_after: float
    steps: int
    best_step: int
    tokens: int
    seconds: float


def fit(
    student: Trainable,
    training: Sequence[Example],
    held_out: Sequence[Example],
    loss: Loss,
    recipe: Schedule,
    *,
    seed: int,
    checkpoints: Path,
    on_step: Callable[[FitState], None],
    rates: Mapping[str, float] | None = None,
    beside: Sequence[Example] = (),
    beside_each: float = 0.0,
) -> FitResult:
    """Train until the schedule ends or the held-out loss stops falling; the best factors are returned and left on the student.

    `rates`: learning rates of the parameters, by name, that have one of their own; all follow the schedule.
    `beside`: examples of another kind, of which `beside_each` on the mean pass with the batch of a step, beside its own.
    """
    parameters = student.parameters()
    optimizer = torch.optim.AdamW(_groups(parameters, recipe, rates or {}), weight_decay=0.0, fused=True)
    state, best = FitState(), {name: p.detach().clone() for name, p in parameters.items()}
    if (saved := load_checkpoint(checkpoints, parameters, optimizer)) is not None:
        state, best = FitState(**saved.state), saved.best
        state.held_out = [(int(s), float(v)) for s, v in state.held_out]
    else:
        state.best_loss = held_out_loss(student, held_out, loss, recipe)
        state.held_out.append((0, state.best_loss))
    student.train(True)
    started, tokens = time.monotonic(), 0
    try:
        while state.step < recipe.max_steps and not _stale(state, recipe):
            batch = [
                *batch_at(training, recipe.batch_size, seed, state.step),
                *(batch_at(beside, beside_each, seed, state.step) if beside else ()),
            ]
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * schedule(state.step, recipe)
            torch.manual_seed(seed * 1_000_003 + state.step)
            state.losses.append(_step(batch, loss, recipe, optimizer))
            tokens += sum(len(e) for e in batch)
            state.step += 1
            if state.step % recipe.evaluate_every == 0 or state.step == recipe.max_steps:
                now = held_out_loss(student, held_out, loss, recipe)
                state.held_out.append((state.step, now))
                if now < state.best_loss:
                    state.best_loss, state.best_step = now, state.step
                    best = {name: p.detach().clone() for name, p in parameters.items()}
                _save(checkpoints, state, best, parameters, optimizer)
            on_step(state)
    except Stopped:
        _save(checkpoints, state, best, parameters, optimizer)
        raise
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(best[name])
    a, b = student.factors()
    return FitResult(
        a=a,
        b=b,
        loss_before=state.held_out[0][1],
        loss_after=state.best_loss,
        steps=state.step,
        best_step=state.best_step,
        tokens=tokens,
        seconds=time.monotonic() - started,
    )


def batch_at(examples: Sequence[Example], size: float, seed: int, step: int) -> list[Example]:
    """Examples of a step, `size` on the mean of all steps: consecutive slices of an endless series of seeded shuffles."""
    batch: list[Example] = []
    orders: dict[int, list[int]] = {}
    for position in range(math.floor(step * size), math.floor((step + 1) * size)):
        epoch, index = divmod(position, len(examples))
        if epoch not in orders:
            orders[epoch] = list(range(len(examples)))
            random.Random(f"{seed}/{epoch}").shuffle(orders[epoch])
        batch.append(examples[orders[epoch][index]])
    return batch


def micro_batches(examples: Sequence[Example], size: int) -> list[list[Example]]:
    """Parts that pass together, each in one pack: at most `size` examples, and of long ones only as many as keep the part within
    size * MICRO_LENGTH tokens, one at least: chunks of a document pass one after the other where short answers pass together.
    """
    parts: list[list[Example]] = []
    part: list[Example] = []
    for example in sorted(examples, key=len):
        if part and (len(part) == size or sum(map(len, part)) + len(example) > size * MICRO_LENGTH):
            parts.append(part)
            part = []
        part.append(example)
    return [*parts, part] if part else parts


def schedule(step: int, recipe: Schedule) -> float:
    """Linear warm-up over `warmup` of the steps, then half a cosine or a line down to 0."""
    warm = max(1, round(recipe.warmup * recipe.max_steps))
    if step < warm:
        return (step + 1) / warm
    done = (step - warm) / max(1, recipe.max_steps - warm)
    return 1 - done if recipe.decay == "linear" else 0.5 * (1 + math.cos(math.pi * done))


@torch.no_grad()
def held_out_loss(student: Trainable, examples: Sequence[Example], loss: Loss, recipe: Schedule) -> float:
    """Mean loss weighted by target tokens."""
    student.train(False)
    total, weight = 0.0, 0
    for batch in micro_batches(examples, recipe.micro_batch):
        count = sum(len(e.target) for e in batch)
        total += float(loss(batch)) * count
        weight += count
    student.train(True)
    return total / max(weight, 1)


def _groups(parameters: Mapping[str, torch.nn.Parameter], recipe: Schedule, rates: Mapping[str, float]) -> list[dict[str, Any]]:
    """Of the optimiser, one for each peak of the learning rate."""
    by_peak: dict[float, list[torch.nn.Parameter]] = {}
    for name, parameter in parameters.items():
        usual = recipe.learning_rate * (recipe.b_rate if name.endswith(B_FACTOR) else 1.0)
        by_peak.setdefault(rates.get(name, usual), []).append(parameter)
    return [{"params": group, "lr": peak, "peak": peak} for peak, group in by_peak.items()]


def _step(batch: list[Example], loss: Loss, recipe: Schedule, optimizer: torch.optim.Optimizer) -> float:
    """One optimiser step; micro-batches weighted by their target tokens."""
    count = sum(len(e.target) for e in batch)
    total = 0.0
    for part in micro_batches(batch, recipe.micro_batch):
        share = loss(part) * (sum(len(e.target) for e in part) / count)
        share.backward()  # type: ignore[no-untyped-call]
        total += float(share.detach())
    torch.nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], recipe.clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return total


def _stale(state: FitState, recipe: Schedule) -> bool:
    return len(state.held_out) > recipe.patience and state.step - state.best_step >= recipe.patience * recipe.evaluate_every


def _save(
    directory: Path, state: FitState, best: dict[str, Tensor], parameters: dict[str, torch.nn.Parameter], optimizer: torch.optim.AdamW
) -> None:
    save_checkpoint(directory, Checkpoint(state=vars(state), best=best), parameters, optimizer)
