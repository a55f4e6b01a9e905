"""The objectives as their definitions read, slowly: the HF model is called plainly, on one sequence at a time, and every sum is a loop."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from worker.training.student import Student

Ids = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Sequences:
    """What stands before the target on either side; `teacher` is empty where nobody teaches."""

    teacher: Ids = ()
    student: Ids
    target: Ids


def literal_nll(student: Student, batch: Sequence[Sequences]) -> Tensor:
    """Eq. 1: mean of -log p(token | all tokens before it) over the targets' tokens."""
    terms = []
    for sequences in batch:
        logits = _run(student, sequences.student + sequences.target).logits[0]
        for index, token in enumerate(sequences.target):
            row = logits[len(sequences.student) + index - 1]
            terms.append(-(row[token].exp() / row.exp().sum()).log())
    return _mean(terms)


def literal_dcd(
    student: Student, batch: Sequence[Sequences], *, weight: float = 1.0, hidden_term: str = "mean", positions: str = "shifted"
) -> Tensor:
    """Eq. 2, with the readings of the table in its first section's end: the KL is a mean over positions, the hidden term of a layer is one
    ratio of two sums over positions."""
    divergences: list[Tensor] = []
    distances: dict[int, list[Tensor]] = {}
    norms: dict[int, list[Tensor]] = {}
    for sequences in batch:
        with torch.no_grad():
            teacher = _run(student, sequences.teacher + sequences.target, bare=True)
        worn = _run(student, sequences.student + sequences.target)
        for index in range(len(sequences.target)):
            back = 1 if positions == "shifted" else 0
            at_teacher, at_student = len(sequences.teacher) + index - back, len(sequences.student) + index - back
            divergences.append(_kl(teacher.logits[0, at_teacher], worn.logits[0, at_student]))
            for layer, (theirs, ours) in enumerate(zip(teacher.hidden_states, worn.hidden_states, strict=True)):
                distances.setdefault(layer, []).append((theirs[0, at_teacher] - ours[0, at_student]).abs().sum())
                norms.setdefault(layer, []).append(theirs[0, at_teacher].abs().sum())
    first = 0 if hidden_term == "mean_with_embeddings" else 1
    layers = [_total(distances[layer]) / _total(norms[layer]) for layer in sorted(distances) if layer >= first]
    return _mean(divergences) + weight * (_total(layers) if hidden_term == "sum" else _mean(layers))


def _run(student: Student, ids: Ids, bare: bool = False) -> Any:
    with student.bare() if bare else nullcontext():
        return student.base(torch.tensor([ids]), output_hidden_states=True, use_cache=False)


def _kl(teacher_V: Tensor, student_V: Tensor) -> Tensor:
    p, q = teacher_V.softmax(-1), student_V.softmax(-1)
    return _total([p[token] * (p[token].log() - q[token].log()) for token in range(len(p))])


def _total(terms: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(terms)).sum()


def _mean(terms: Sequence[Tensor]) -> Tensor:
    return _total(terms) / len(terms)
