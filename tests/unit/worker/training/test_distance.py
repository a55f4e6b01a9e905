"""The distillation loss of states against a literal re-implementation of its definition."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from worker.training.distance import dcd_loss


def literal(student: list[Tensor], teacher: Tensor, head: nn.Linear) -> Tensor:
    p, q = head(teacher[-1]).softmax(-1), head(student[-1]).softmax(-1)
    kl = (p * (p.log() - q.log())).sum(-1).mean()
    hidden = torch.stack([(t - s).abs().sum() / t.abs().sum() for s, t in zip(student, teacher, strict=True)]).mean()
    total: Tensor = kl + hidden
    return total


def test_loss_and_gradient_are_those_of_the_definition() -> None:
    torch.manual_seed(0)
    rows = 135
    head = nn.Linear(16, 50, bias=False).requires_grad_(False)
    teacher = torch.randn(3, rows, 16)
    student = [torch.randn(rows, 16, requires_grad=True) for _ in range(3)]
    expected = literal(student, teacher, head)
    wanted = torch.autograd.grad(expected, student)
    loss = dcd_loss(student, teacher, teacher[-1], head, 1.0)
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    for got, want in zip(torch.autograd.grad(loss, student), wanted, strict=True):
        torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-4)
