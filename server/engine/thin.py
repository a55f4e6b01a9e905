"""Linear layers over few rows on a CPU, where the BLAS that torch ships reads the weights far below the speed of memory.

Decoding multiplies a few rows with every weight of the model. As `x @ W.T` that runs at a quarter to two thirds of the speed of the
same product laid out as `(W @ x.T).T`, and over a single row on one thread only. The sums are the same up to rounding, and
which way is taken depends on the number of rows alone. docs/performance.md has the measurements.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

FEW = 64
"""Rows up to which the other layout is faster."""
PARTS = 4
"""A single row's product is split over the threads in this many parts."""

Forward = Callable[[Tensor], Tensor]


def forward_of(layer: nn.Linear) -> Forward:
    """The layer's product `[..., in] -> [..., out]`, as fast as is known here."""
    weight = layer.weight
    if weight.device.type != "cpu" or weight.dtype not in (torch.float32, torch.float64):
        return layer.forward
    return _Thin(weight, layer.bias)


class ThinLinear(nn.Linear):
    """Stands in for a linear layer, whose weights it shares."""

    def __init__(self, layer: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight, self.bias = layer.weight, layer.bias
        self._product = forward_of(layer)

    def forward(self, x: Tensor) -> Tensor:
        return self._product(x)


class _Thin:
    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight = weight
        self._bias = bias
        self._out, fan_in = weight.shape
        self._parts = weight.view(PARTS, self._out // PARTS, fan_in) if self._out % PARTS == 0 and weight.is_contiguous() else None

    def __call__(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        if len(rows) > FEW or x.requires_grad:
            return linear(x, self._weight, self._bias)
        y = self._turned(rows.contiguous())
        if self._bias is not None:
            y += self._bias
        return y.view(*x.shape[:-1], self._out)

    def _turned(self, rows: Tensor) -> Tensor:
        if len(rows) == 1 and self._parts is not None:
            column = rows.t().unsqueeze(0).expand(PARTS, -1, -1)
            return torch.bmm(self._parts, column).view(1, self._out)
        return torch.mm(self._weight, rows.t()).t().contiguous()
