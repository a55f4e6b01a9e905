"""Losses over the vocabulary, from states: logits are rebuilt through the frozen head in blocks of tokens, so that
[vocabulary, tokens] exists for one block only. Each has its own backward: the gradient is made in the forward pass, block by block.

The vocabulary comes first: so the product with the head is as fast as one gets on a CPU, and sums over it run along whole rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

BLOCK_NUMBERS = 1 << 24
"""Of a block's logits, of which four such tensors exist at a time: more tokens make faster products."""


Block = Callable[[slice, Tensor], tuple[Tensor, Tensor]]
"""Tokens and the student's logits [V, B] there to (sum of the loss, its gradient by the logits [V, B]); may use up the latter."""


class _Blockwise(torch.autograd.Function):
    """Mean of a loss over rows, its gradient computed in the forward pass, block by block."""

    @staticmethod
    def forward(ctx: Any, student_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, block: Block) -> Tensor:
        n = student_NH.shape[0]
        gradient_NH = torch.empty_like(student_NH)
        total = torch.zeros((), dtype=wide(student_NH.dtype), device=student_NH.device)
        size = max(1, BLOCK_NUMBERS // len(weight_VH))
        for start in range(0, n, size):
            rows = slice(start, start + size)
            loss, slope_VB = block(rows, _logits(student_NH[rows], weight_VH, bias_V))
            total += loss
            gradient_NH[rows] = (weight_VH.t() @ slope_VB.to(weight_VH.dtype)).t() / n
        ctx.save_for_backward(gradient_NH)
        return total / n

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient_NH,) = ctx.saved_tensors
        return gradient_NH * grad_outputs[0].to(gradient_NH.dtype), None, None, None


def kl_from_states(student_NH: Tensor, teacher_NH: Tensor, head: nn.Linear) -> Tensor:
    """Forward KL in nats over the full vocabulary, mean over N positions. States are post-norm, `head` is frozen."""

    def block(rows: slice, logits_VB: Tensor) -> tuple[Tensor, Tensor]:
        q, log_sum_q = _exponentials(logits_VB)
        teacher_VB = _logits(teacher_NH[rows], head.weight, head.bias)
        p, log_sum_p = _exponentials(teacher_VB)
        p /= log_sum_p.exp()
        loss = (p * teacher_VB.sub_(logits_VB)).sum() + (log_sum_q - log_sum_p).sum()
        return loss, q.div_(log_sum_q.exp()).sub_(p)

    return _mean(student_NH, head, block)


def nll_from_states(student_NH: Tensor, target_N: Tensor, head: nn.Linear) -> Tensor:
    """Negative log-likelihood in nats of one token a position, mean over N positions. States are post-norm, `head` is frozen."""

    def block(rows: slice, logits_VB: Tensor) -> tuple[Tensor, Tensor]:
        target = target_N[None, rows]
        q, log_sum = _exponentials(logits_VB)
        loss = (log_sum - logits_VB.gather(0, target)[0]).sum()
        return loss, q.div_(log_sum.exp()).scatter_add_(0, target, torch.full_like(target, -1, dtype=q.dtype))

    return _mean(student_NH, head, block)


def _mean(student_NH: Tensor, head: nn.Linear, block: Block) -> Tensor:
    loss: Tensor = _Blockwise.apply(student_NH, head.weight, head.bias, block)  # type: ignore[no-untyped-call]
    return loss


def wide(dtype: torch.dtype) -> torch.dtype:
    """What sums over many terms are taken in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _logits(state_BH: Tensor, weight_VH: Tensor, bias_V: Tensor | None) -> Tensor:
    logits_VB = weight_VH @ state_BH.t()
    return (logits_VB if bias_V is None else logits_VB + bias_V[:, None]).to(wide(logits_VB.dtype))


def _exponentials(logits_VB: Tensor) -> tuple[Tensor, Tensor]:
    """e to the logits, and the logarithm [B] of their sums. The logits are lowered by each token's largest, in place, which changes no
    softmax."""
    logits_VB -= logits_VB.amax(0)
    exponentials = logits_VB.exp()
    return exponentials, exponentials.sum(0).log()
