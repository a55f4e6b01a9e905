"""Losses over the vocabulary, from states: logits are rebuilt through the frozen head in blocks of tokens, so that
[tokens, vocabulary] exists for one block only. Each has its own backward: the gradient is made in the forward pass, block by block.
"""

from __future__ import annotations

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
        total = torch.zeros((), dtype=wide(student_NH.dtype), device=student_NH.device)
        for start in range(0, n, BLOCK):
            rows = slice(start, start + BLOCK)
            log_p = _log_probabilities(teacher_NH[rows], weight_VH, bias_V)
            log_q = _log_probabilities(student_NH[rows], weight_VH, bias_V)
            p = log_p.exp()
            total += (p * (log_p - log_q)).sum()
            gradient_NH[rows] = ((log_q.exp_() - p) / n).to(weight_VH.dtype) @ weight_VH
        ctx.save_for_backward(gradient_NH)
        return total / n

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient_NH,) = ctx.saved_tensors
        return gradient_NH * grad_outputs[0].to(gradient_NH.dtype), None, None, None


class _BlockwiseNLL(torch.autograd.Function):
    """Mean negative log-likelihood over rows, with the gradient (q - onehot) W / n."""

    @staticmethod
    def forward(ctx: Any, student_NH: Tensor, target_N: Tensor, weight_VH: Tensor, bias_V: Tensor | None) -> Tensor:
        n = student_NH.shape[0]
        gradient_NH = torch.empty_like(student_NH)
        total = torch.zeros((), dtype=wide(student_NH.dtype), device=student_NH.device)
        for start in range(0, n, BLOCK):
            rows = slice(start, start + BLOCK)
            target = target_N[rows, None]
            log_q = _log_probabilities(student_NH[rows], weight_VH, bias_V)
            total -= log_q.gather(1, target).sum()
            q = log_q.exp_()
            q.scatter_add_(1, target, torch.full_like(target, -1, dtype=q.dtype))
            gradient_NH[rows] = (q / n).to(weight_VH.dtype) @ weight_VH
        ctx.save_for_backward(gradient_NH)
        return total / n

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient_NH,) = ctx.saved_tensors
        return gradient_NH * grad_outputs[0].to(gradient_NH.dtype), None, None, None


def kl_from_states(student_NH: Tensor, teacher_NH: Tensor, head: nn.Linear) -> Tensor:
    """Forward KL in nats over the full vocabulary, mean over N positions. States are post-norm, `head` is frozen."""
    loss: Tensor = _BlockwiseKL.apply(student_NH, teacher_NH, head.weight, head.bias)  # type: ignore[no-untyped-call]
    return loss


def nll_from_states(student_NH: Tensor, target_N: Tensor, head: nn.Linear) -> Tensor:
    """Negative log-likelihood in nats of one token a position, mean over N positions. States are post-norm, `head` is frozen."""
    loss: Tensor = _BlockwiseNLL.apply(student_NH, target_N, head.weight, head.bias)  # type: ignore[no-untyped-call]
    return loss


def wide(dtype: torch.dtype) -> torch.dtype:
    """What sums over many terms are taken in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _log_probabilities(state_BH: Tensor, weight_VH: Tensor, bias_V: Tensor | None) -> Tensor:
    logits = nn.functional.linear(state_BH, weight_VH, bias_V)
    return logits.to(wide(logits.dtype)).log_softmax(-1)
