from __future__ import annotations

import pytest
import torch
from torch import nn

from server.engine.thin import FEW, ThinLinear, forward_of


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("out", [8, 7])
@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (2, 3), (1, FEW), (1, FEW + 1)])
def test_the_product_is_the_layers(shape: tuple[int, int], out: int, bias: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(5, out, bias=bias, dtype=torch.float64).requires_grad_(False)
    x = torch.randn(*shape, 5, dtype=torch.float64)
    y = forward_of(layer)(x)
    assert y.is_contiguous()
    assert torch.allclose(y, layer(x), rtol=0, atol=1e-12)


def test_rows_that_are_not_contiguous() -> None:
    layer = nn.Linear(5, 8, dtype=torch.float64).requires_grad_(False)
    x = torch.randn(5, 3, dtype=torch.float64).t()[None]
    assert torch.allclose(forward_of(layer)(x), layer(x), rtol=0, atol=1e-12)


def test_a_dtype_that_has_products_of_its_own_keeps_them() -> None:
    layer = nn.Linear(4, 4, dtype=torch.bfloat16)
    assert forward_of(layer) == layer.forward


def test_gradients_pass() -> None:
    layer = nn.Linear(4, 4)
    x = torch.randn(2, 4, requires_grad=True)
    ThinLinear(layer)(x).sum().backward()
    assert x.grad is not None
    assert torch.allclose(x.grad, layer.weight.sum(0).expand(2, -1))


def test_it_shares_the_layers_weights() -> None:
    layer = nn.Linear(4, 8)
    thin = ThinLinear(layer)
    assert thin.weight is layer.weight
    assert thin.bias is layer.bias
