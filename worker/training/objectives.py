"""Deep Context Distillation (Caccia et al. 2025, eq. 2): the loss between a student without the document and its teacher with it.

    loss = KL(p_teacher || p_student) + w * mean over layers of  sum_t |h_t - h_s|_1 / sum_t |h_t|_1

over the positions that predict target tokens; the KL is over the full vocabulary, mean over the same positions. The layers are
1..L, the last one after the final norm; embeddings are left out. Both sides are given as states: logits are rebuilt through
the frozen head in blocks of tokens, so that [tokens, vocabulary] exists for one block only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

BLOCK = 128


class _BlockwiseKL(torch.autograd.Function):
    """Mean KL over rows, with the gradient (q - p) W / n computed in the forward pass, block by block."""

    @staticmethod
    def forward(ctx: Any, student_NH: Tensor, teacher_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None) -> Tensor:
        n = student_NH.shape[0]
        gradient_NH = torch.empty_like(student_NH)
        total = torch.zeros((), dtype=torch.float32, device=student_NH.device)
        for start in range(0, n, BLOCK):
            rows = slice(start, start + BLOCK)
            log_p = nn.functional.linear(teacher_NH[rows], weight_VH, bias_V).float().log_softmax(-1)
            log_q = nn.functional.linear(student_NH[rows], weight_VH, bias_V).float().log_softmax(-1)
            p = log_p.exp()
            total += (p * (log_p - log_q)).sum()
            gradient_NH[rows] = ((log_q.exp_() - p) / n).to(weight_VH.dtype) @ weight_VH
        ctx.save_for_backward(gradient_NH)
        return total / n

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient_NH,) = ctx.saved_tensors
        return gradient_NH * grad_outputs[0].to(gradient_NH.dtype), None, None, None


def kl_from_states(student_NH: Tensor, teacher_NH: Tensor, head: nn.Linear) -> Tensor:
    """Forward KL in nats, mean over N positions. States are post-norm, `head` is frozen."""
    loss: Tensor = _BlockwiseKL.apply(student_NH, teacher_NH, head.weight, head.bias)  # type: ignore[no-untyped-call]
    return loss


def hidden_distance(student_LNH: Sequence[Tensor], teacher_LNH: Tensor) -> Tensor:
    """Mean over layers of the L1 distance relative to the teacher's L1 norm, sums over positions."""
    terms = [
        (teacher_NH.to(student_NH.dtype) - student_NH).abs().sum(dtype=torch.float32) / teacher_NH.abs().sum(dtype=torch.float32)
        for student_NH, teacher_NH in zip(student_LNH, teacher_LNH, strict=True)
    ]
    return torch.stack(terms).mean()


def dcd_loss(student_LNH: Sequence[Tensor], teacher_LNH: Tensor, teacher_final_NH: Tensor, head: nn.Linear, hidden_weight: float) -> Tensor:
    """Eq. 2 for one micro-batch; `teacher_final_NH` is the last layer at full precision, `teacher_LNH` may be stored in less."""
    loss = kl_from_states(student_LNH[-1], teacher_final_NH.to(student_LNH[-1].dtype), head)
    return loss + hidden_weight * hidden_distance(student_LNH, teacher_LNH) if hidden_weight else loss
