"""The publish gate: measures the very bytes that would be published, on pairs that training never saw."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from server.engine.prompt import Prompt, answer_prompt, plain_ids
from server.modules.artefact import Artefact
from worker.synthesis.texts import TextPair
from worker.training.examples import Example
from worker.training.fit import Loss, held_out_loss
from worker.training.passages import Retrieve
from worker.training.recipe import Recipe
from worker.training.states import token_nll
from worker.training.student import Student


@dataclass(frozen=True, kw_only=True)
class Gate:
    """Losses are the objective on held-out examples; the answer NLLs (nats per token) compare the modes on held-out questions."""

    passed: bool
    loss_before: float
    loss_after: float
    improvement: float
    required: float
    questions: int
    retrieval_nll: float | None
    open_book_nll: float | None
    closed_book_nll: float | None
    auto_mode: str
    """What `mode: auto` may take: `open_book` only if it beat `retrieval` here."""


def measure(
    student: Student,
    artefact: Artefact,
    held_out: Sequence[Example],
    pairs: Sequence[TextPair],
    loss: Loss,
    recipe: Recipe,
    retrieve: Retrieve,
    tokenizer: PreTrainedTokenizerBase,
    device: torch.device,
) -> Gate:
    """Put the artefact's tensors on the student and measure it against the bare base."""
    student.wear(artefact.a, artefact.b)
    after = held_out_loss(student, held_out, loss, recipe)
    with student.bare():
        before = held_out_loss(student, held_out, loss, recipe)
    student.train(False)
    questions = [pair for pair in pairs if pair.question]
    nll = {mode: _mean_nll(student, questions, mode, retrieve, tokenizer, device) for mode in ("retrieval", "open_book", "closed_book")}
    improvement = (before - after) / before if before else 0.0
    better = nll["open_book"] is not None and nll["retrieval"] is not None and nll["open_book"] < nll["retrieval"]
    return Gate(
        passed=improvement >= recipe.gate_improvement,
        loss_before=before,
        loss_after=after,
        improvement=improvement,
        required=recipe.gate_improvement,
        questions=len(questions),
        retrieval_nll=nll["retrieval"],
        open_book_nll=nll["open_book"],
        closed_book_nll=nll["closed_book"],
        auto_mode="open_book" if better else "retrieval",
    )


def _mean_nll(
    student: Student, pairs: Sequence[TextPair], mode: str, retrieve: Retrieve, tokenizer: PreTrainedTokenizerBase, device: torch.device
) -> float | None:
    if not pairs:
        return None
    total = 0.0
    for pair in pairs:
        prompt = answer_prompt(tokenizer, pair.question, () if mode == "closed_book" else retrieve(pair.question))
        total += _nll(student, prompt, pair.target, mode == "retrieval", tokenizer, device)
    return total / len(pairs)


def _nll(student: Student, prompt: Prompt, answer: str, bare: bool, tokenizer: PreTrainedTokenizerBase, device: torch.device) -> float:
    target = plain_ids(tokenizer, answer)
    with student.bare() if bare else nullcontext():
        return token_nll(student.base, student.body, prompt, target, device, student.unworn)
