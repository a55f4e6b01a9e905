"""Routed LoRA: each token of a packed row adds its own adapter's product to each linear layer, and a bare token nothing.

`RoutedLinear` stands in for a linear layer and keeps it inside; `install` and `uninstall` leave the model as it was. A bank holds
adapters in slots, `[slots, rank, in]` and `[slots, rank, out]` per layer, so that slots side by side are one batched product. A `Route`
is the plan of one step for one bank: it knows rows of the packed input, slots and weights, nothing of sequences or artefacts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

SMALL = 8
"""Longest run of one slot's tokens that joins a batched product; longer runs fill the machine on their own."""
WORTH_BATCHING = 5
"""Fewer slots than this are faster one by one."""


class Router:
    """The routes of the step in progress, read by every `RoutedLinear` of a model."""

    def __init__(self) -> None:
        self.routes: tuple[Route, ...] = ()


class RoutedLinear(nn.Module):
    def __init__(self, linear: nn.Linear, layer: int, router: Router) -> None:
        super().__init__()
        self.linear = linear
        self._layer = layer
        self._router = router

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x)
        for route in self._router.routes:
            route.add(self._layer, x, y)
        return y


def install(model: nn.Module, layers: Mapping[str, nn.Linear], router: Router) -> None:
    """Put a `RoutedLinear` in the place of each named layer; its number is its place in `layers`."""
    for number, (name, linear) in enumerate(layers.items()):
        if isinstance(linear, RoutedLinear) or any(isinstance(child, RoutedLinear) for child in model.modules() if child is linear):
            raise ValueError("another engine runs on this model")
        _replace(model, name, RoutedLinear(linear, number, router))


def uninstall(model: nn.Module, layers: Mapping[str, nn.Linear]) -> None:
    for name, linear in layers.items():
        _replace(model, name, linear)


def _replace(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, layer)
