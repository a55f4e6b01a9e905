"""Losses over the vocabulary in blocks of tokens: the plain ones' values and gradients, in memory that does not grow with the tokens."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.support.unavailable import unavailable
from worker.training import blockwise
from worker.training.blockwise import kl_from_states, nll_from_states

ROOT = Path(__file__).parents[4]
VOCABULARY, BLOCK = 50, 128
"""Tokens of a block, of the tests' head."""
ROWS = [1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 7]
Loss = Callable[[Tensor, Tensor, nn.Linear], Tensor]
MEASURED = """
import sys
import torch
from torch import nn
from worker.training import blockwise
from worker.training.blockwise import kl_from_states, nll_from_states
from tests.unit.worker.training.test_blockwise import plain_kl, plain_nll

def peak():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM:"))

def take(loss, rows):
    student = torch.randn(rows, 16, requires_grad=True)
    other = torch.randn(rows, 16) if sys.argv[1] == "kl" else torch.randint(16384, (rows,))
    loss(student, other, head).backward()
    return peak()

torch.set_num_threads(1)
blockwise.BLOCK_NUMBERS = 128 * 16384
head = nn.Linear(16, 16384, bias=False).requires_grad_(False)
ours, plain = {"kl": (kl_from_states, plain_kl), "nll": (nll_from_states, plain_nll)}[sys.argv[1]]
print(take(ours, 2), take(ours, 512), take(ours, 2048), take(plain, 2048))
"""


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blockwise, "BLOCK_NUMBERS", BLOCK * VOCABULARY)


def plain_kl(student_NH: Tensor, teacher_NH: Tensor, head: nn.Linear) -> Tensor:
    log_p, log_q = head(teacher_NH).log_softmax(-1), head(student_NH).log_softmax(-1)
    loss: Tensor = (log_p.exp() * (log_p - log_q)).sum(-1).mean()
    return loss


def plain_nll(student_NH: Tensor, target_N: Tensor, head: nn.Linear) -> Tensor:
    return nn.functional.cross_entropy(head(student_NH), target_N)


def made(rows: int, bias: bool, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, nn.Linear]:
    """Student's and teacher's states, targets, head."""
    torch.manual_seed(rows)
    head = nn.Linear(16, VOCABULARY, bias=bias, dtype=dtype).requires_grad_(False)
    student = torch.randn(rows, 16, dtype=dtype, requires_grad=True)
    return student, torch.randn(rows, 16, dtype=dtype), torch.randint(VOCABULARY, (rows,)), head


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("bias", [False, True], ids=["no-bias", "bias"])
def test_values_and_gradients_are_those_of_the_plain_losses(rows: int, bias: bool) -> None:
    student, teacher, targets, head = made(rows, bias)
    losses: list[tuple[Loss, Loss, Tensor]] = [(kl_from_states, plain_kl, teacher), (nll_from_states, plain_nll, targets)]
    for ours, plain, other in losses:
        got, wanted = ours(student, other, head), plain(student, other, head)
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)
        gradients = [torch.autograd.grad(3 * loss, student)[0] for loss in (got, wanted)]
        torch.testing.assert_close(gradients[0], gradients[1], atol=1e-6, rtol=1e-4)


def test_the_backward_is_that_of_the_forward() -> None:
    student, teacher, targets, head = made(BLOCK + 2, True, torch.float64)
    some = student.detach()[-5:].requires_grad_()
    assert torch.autograd.gradcheck(lambda states: kl_from_states(states, teacher[-5:], head), (some,))
    assert torch.autograd.gradcheck(lambda states: nll_from_states(states, targets[-5:], head), (some,))
    assert torch.autograd.gradcheck(lambda states: kl_from_states(states, teacher, head), (student,), fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_sums_are_taken_in_float32_at_least(dtype: torch.dtype) -> None:
    student, teacher, targets, head = made(BLOCK + 1, True, dtype)
    wanted = torch.float64 if dtype == torch.float64 else torch.float32
    assert kl_from_states(student, teacher, head).dtype == nll_from_states(student, targets, head).dtype == wanted
    assert torch.autograd.grad(kl_from_states(student, teacher, head), student)[0].dtype == dtype


@pytest.mark.parametrize("which", ["kl", "nll"])
@pytest.mark.slow
def test_memory_is_that_of_a_block_however_many_tokens_there_are(which: str) -> None:
    """The peak of a process, backward included. In float32 [tokens, vocabulary] is 134 MB for the 2048 tokens here, a block of it 8 MB."""
    if not Path("/proc/self/status").exists():
        unavailable("no /proc/self/status here", ci_has_it=False)
    # Freed tensors go back to the system at once, whatever their size, so that the peak is that of the live ones.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-c", MEASURED, which]
    told = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    two, few, many, plain = map(int, told.stdout.split())
    whole, block = 2048 * 16384 * 4, BLOCK * 16384 * 4
    assert few - two < 8 * block < whole
    assert many - few < block / 4
    assert plain - many > 2 * whole, "the measure sees what the plain loss takes"
