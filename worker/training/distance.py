"""Deep Context Distillation (Caccia et al. 2025, eq. 2): the loss between a student without the document and its teacher with it.

    loss = KL(p_teacher || p_student) + w * mean over layers of  sum_t |h_t - h_s|_1 / sum_t |h_t|_1

over the positions of the target; the KL is over the full vocabulary, mean over the same positions. The layers are 1..L, the last one
after the final norm; embeddings are left out. The text of the paper takes the sum over layers, its authors' code the mean over the
L+1 states with the embeddings: `HiddenTerm` names the three readings. Both sides are given as states.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from worker.training.blockwise import kl_from_states, wide
from worker.training.recipe import HiddenTerm


def hidden_distance(student_LNH: Sequence[Tensor], teacher_LNH: Tensor, reading: HiddenTerm = "mean") -> Tensor:
    """L1 distance of a layer relative to the teacher's L1 norm, sums over positions; mean or sum over the given layers."""
    total = wide(student_LNH[0].dtype)
    terms = [
        (teacher_NH.to(student_NH.dtype) - student_NH).abs().sum(dtype=total) / teacher_NH.abs().sum(dtype=total)
        for student_NH, teacher_NH in zip(student_LNH, teacher_LNH, strict=True)
    ]
    stacked = torch.stack(terms)
    return stacked.sum() if reading == "sum" else stacked.mean()


def dcd_loss(
    student_LNH: Sequence[Tensor],
    teacher_LNH: Tensor,
    teacher_final_NH: Tensor,
    head: nn.Linear,
    hidden_weight: float,
    reading: HiddenTerm = "mean",
) -> Tensor:
    """Eq. 2 for one micro-batch; `teacher_final_NH` is the last layer at full precision, `teacher_LNH` may be stored in less.

    Both hold the layers that the reading of the hidden term is over: with the embeddings or without.
    """
    loss = kl_from_states(student_LNH[-1], teacher_final_NH.to(student_LNH[-1].dtype), head)
    return loss + hidden_weight * hidden_distance(student_LNH, teacher_LNH, reading) if hidden_weight else loss
