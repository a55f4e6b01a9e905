"""The fit: batches in an order that is a pure function of (seed, step), AdamW, warm-up and decay, held-out evaluation, best
checkpoint, early stop. Knows nothing of files but the checkpoint's, of jobs only a callback that may raise `Stopped`, of objectives
only their loss."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor

from worker.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from worker.training.examples import Example
from worker.training.objectives.registry import objective_of
from worker.training.recipe import Recipe
from worker.training.student import Student
from worker.training.teacher import TeacherCache

MICRO_LENGTH = 256
"""Tokens. What a micro-batch takes grows with its longest example; those of texts that a base answers with are shorter than this."""


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
    student: Student,
    training: Sequence[Example],
    held_out: Sequence[Example],
    teacher: TeacherCache,
    recipe: Recipe,
    *,
    seed: int,
    device: torch.device,
    checkpoints: Path,
    on_step: Callable[[FitState], None],
) -> FitResult:
    """Train until the schedule ends or the held-out loss stops falling; the best factors are returned and left on the student."""
    parameters = student.parameters()
    optimizer = torch.optim.AdamW(parameters.values(), lr=recipe.learning_rate, weight_decay=0.0)
    state, best = FitState(), {name: p.detach().clone() for name, p in parameters.items()}
    if (saved := load_checkpoint(checkpoints, parameters, optimizer)) is not None:
        state, best = FitState(**saved.state), saved.best
        state.held_out = [(int(s), float(v)) for s, v in state.held_out]
    else:
        state.best_loss = held_out_loss(student, held_out, teacher, recipe, device)
        state.held_out.append((0, state.best_loss))
    started, tokens = time.monotonic(), 0
    try:
        while state.step < recipe.max_steps and not _stale(state, recipe):
            batch = batch_at(training, recipe.batch_size, seed, state.step)
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate * schedule(state.step, recipe)
            torch.manual_seed(seed * 1_000_003 + state.step)
            state.losses.append(_step(student, batch, teacher, recipe, optimizer, device))
            tokens += sum(len(e) for e in batch)
            state.step += 1
            if state.step % recipe.evaluate_every == 0 or state.step == recipe.max_steps:
                loss = held_out_loss(student, held_out, teacher, recipe, device)
                state.held_out.append((state.step, loss))
                if loss < state.best_loss:
                    state.best_loss, state.best_step = loss, state.step
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


def batch_at(examples: Sequence[Example], size: int, seed: int, step: int) -> list[Example]:
    """Examples of a step: consecutive slices of an endless series of seeded shuffles."""
    batch = []
    for position in range(step * size, (step + 1) * size):
        epoch, index = divmod(position, len(examples))
        order = list(range(len(examples)))
        random.Random(f"{seed}/{epoch}").shuffle(order)
        batch.append(examples[order[index]])
    return batch


def micro_batches(examples: Sequence[Example], size: int) -> list[list[Example]]:
    """Parts of one kind and similar length: their prompts begin alike, which is read once, and little is padding.

    At most `size` examples, and of those longer than MICRO_LENGTH only as many as keep the part within size * MICRO_LENGTH tokens, one at
    least: chunks of a document pass one after the other where short answers pass together.
    """
    parts: list[list[Example]] = []
    for _, group in groupby(sorted(examples, key=lambda e: (e.kind, len(e))), key=lambda e: e.kind):
        part: list[Example] = []
        for example in group:
            if part and (len(part) == size or (len(part) + 1) * len(example) > size * MICRO_LENGTH):
                parts.append(part)
                part = []
            part.append(example)
        parts.append(part)
    return parts


def schedule(step: int, recipe: Recipe) -> float:
    """Linear warm-up over `warmup` of the steps, then half a cosine or a line down to 0."""
    warm = max(1, round(recipe.warmup * recipe.max_steps))
    if step < warm:
        return (step + 1) / warm
    done = (step - warm) / max(1, recipe.max_steps - warm)
    return 1 - done if recipe.decay == "linear" else 0.5 * (1 + math.cos(math.pi * done))


@torch.no_grad()
def held_out_loss(student: Student, examples: Sequence[Example], teacher: TeacherCache, recipe: Recipe, device: torch.device) -> float:
    """Mean loss weighted by target tokens."""
    student.train(False)
    total, weight = 0.0, 0
    for batch in micro_batches(examples, recipe.micro_batch):
        count = sum(len(e.target) for e in batch)
        total += float(_loss(student, batch, teacher, recipe, device)) * count
        weight += count
    student.train(True)
    return total / max(weight, 1)


def _step(
    student: Student, batch: list[Example], teacher: TeacherCache, recipe: Recipe, optimizer: torch.optim.Optimizer, device: torch.device
) -> float:
    """One optimiser step; micro-batches weighted by their target tokens."""
    count = sum(len(e.target) for e in batch)
    total = 0.0
    for part in micro_batches(batch, recipe.micro_batch):
        loss = _loss(student, part, teacher, recipe, device) * (sum(len(e.target) for e in part) / count)
        loss.backward()  # type: ignore[no-untyped-call]
        total += float(loss.detach())
    torch.nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], recipe.clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return total


def _loss(student: Student, batch: Sequence[Example], teacher: TeacherCache, recipe: Recipe, device: torch.device) -> Tensor:
    return objective_of(recipe).loss(student, batch, teacher, recipe, device)


def _stale(state: FitState, recipe: Recipe) -> bool:
    return len(state.held_out) > recipe.patience and state.step - state.best_step >= recipe.patience * recipe.evaluate_every


def _save(
    directory: Path, state: FitState, best: dict[str, Tensor], parameters: dict[str, torch.nn.Parameter], optimizer: torch.optim.AdamW
) -> None:
    save_checkpoint(directory, Checkpoint(state=vars(state), best=best), parameters, optimizer)
