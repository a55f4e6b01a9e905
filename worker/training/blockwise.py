"""Losses over the vocabulary, from states: logits are rebuilt through the frozen head in blocks of tokens, so that
[tokens, vocabulary] exists for one block only. Each has its own backward: the gradient is made in the forward pass, block by block.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

BLOCK = 128


Block = Callable[[slice, Tensor], tuple[Tensor, Tensor]]
"""Rows and the student's log-probabilities [B, V] there to (sum of the loss, its gradient by the logits [B, V]); may use up the latter."""


class _Blockwise(torch.autograd.Function):
    """Mean of a loss over rows, its gradient computed in the forward pass, block by block."""

    @staticmethod
    def forward(ctx: Any, student_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, block: Block) -> Tensor:
        n = student_NH.shape[0]
        gradient_NH = torch.empty_like(student_NH)
        total = torch.zeros((), dtype=wide(student_NH.dtype), device=student_NH.device)
        for start in range(0, n, BLOCK):
            rows = slice(start, start + BLOCK)
            loss, slope_BV = block(rows, _log_probabilities(student_NH[rows], weight_VH, bias_V))
            total += loss
            gradient_NH[rows] = (slope_BV / n).to(weight_VH.dtype) @ weight_VH
        ctx.save_for_backward(gradient_NH)
        return total / n

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient_NH,) = ctx.saved_tensors
        return gradient_NH * grad_outputs[0].to(gradient_NH.dtype), None, None, None


def kl_from_states(student_NH: Tensor, teacher_NH: Tensor, head: nn.Linear) -> Tensor:
    """Forward KL in nats over the full vocabulary, mean over N positions. States are post-norm, `head` is frozen."""

    def block(rows: slice, log_q: Tensor) -> tuple[Tensor, Tensor]:
        log_p = _log_probabilities(teacher_NH[rows], head.weight, head.bias)
        p = log_p.exp()
        return (p * (log_p - log_q)).sum(), log_q.exp_() - p

    return _mean(student_NH, head, block)


def nll_from_states(student_NH: Tensor, target_N: Tensor, head: nn.Linear) -> Tensor:
    """Negative log-likelihood in nats of one token a position, mean over N positions. States are post-norm, `head` is frozen."""

    def block(rows: slice, log_q: Tensor) -> tuple[Tensor, Tensor]:
        target = target_N[rows, None]
        loss = -log_q.gather(1, target).sum()
        q = log_q.exp_()
        return loss, q.scatter_add_(1, target, torch.full_like(target, -1, dtype=q.dtype))

    return _mean(student_NH, head, block)


def _mean(student_NH: Tensor, head: nn.Linear, block: Block) -> Tensor:
    loss: Tensor = _Blockwise.apply(student_NH, head.weight, head.bias, block)  # type: ignore[no-untyped-call]
    return loss


def wide(dtype: torch.dtype) -> torch.dtype:
    """What sums over many terms are taken in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _log_probabilities(state_BH: Tensor, weight_VH: Tensor, bias_V: Tensor | None) -> Tensor:
    logits = nn.functional.linear(state_BH, weight_VH, bias_V)
    return logits.to(wide(logits.dtype)).log_softmax(-1)
