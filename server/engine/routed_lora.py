"""Routed LoRA: each token of a packed row adds its own adapter's product to every linear layer, a bare token nothing.

`RoutedLinear` stands in for a linear layer; `install` and `uninstall` leave the model as it was. A `Route` is one step's plan for one
bank of slots: which rows of the packed input wear which slot, and how much each layer counts. Knows nothing of sequences or artefacts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

import torch
from torch import Tensor, nn

from server.engine.adapter_bank import AdapterBank
from server.engine.request import Scope
from server.engine.thin import forward_of

SMALL = 8
"""Longest run of rows of one slot that joins a batched product; longer ones fill the machine on their own."""
WORTH_BATCHING = 5
"""Fewer slots than this are faster one by one."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Worn:
    """A slot, the factor of each layer's product (the composition's weight times the adapter's scaling), and where it acts."""

    slot: int
    factors: tuple[float, ...]
    scope: Scope = Scope.ALL


@dataclass(frozen=True, kw_only=True)
class Run:
    """Rows `start .. end - 1` of the packed input that wear an adapter."""

    worn: Worn
    start: int
    end: int


class Part(Protocol):
    def add(self, layer: int, x: Tensor, y: Tensor) -> None:
        """Add the adapters' product over rows of `x` `[T, in]` to the same rows of `y` `[T, out]`."""
        ...


class Adds(Protocol):
    """What a step's rows wear of one bank of slots."""

    def add(self, layer: int, x: Tensor, y: Tensor) -> None: ...


class Route:
    """Of any number of rows."""

    def __init__(self, bank: AdapterBank, runs: Sequence[Run]) -> None:
        self._parts = list(_parts(bank, _joined(runs)))

    def add(self, layer: int, x: Tensor, y: Tensor) -> None:
        rows_in, rows_out = x.reshape(-1, x.shape[-1]), y.view(-1, y.shape[-1])
        for part in self._parts:
            part.add(layer, rows_in, rows_out)


class _Dense:
    """One run of rows with one slot."""

    def __init__(self, bank: AdapterBank, run: Run) -> None:
        self._rows = slice(run.start, run.end)
        self._products = bank.products(run.worn.slot)
        self._factors = run.worn.factors

    def add(self, layer: int, x: Tensor, y: Tensor) -> None:
        product = self._products[layer]
        if product is not None:
            down, up = product
            y[self._rows].addmm_(x[self._rows] @ down, up, alpha=self._factors[layer])


class _Batched:
    """Short runs over slots that lie side by side, in one batched product per layer, padded to the longest."""

    def __init__(self, bank: AdapterBank, first: int, end: int, runs: Sequence[Run]) -> None:
        tokens: list[list[tuple[int, Worn]]] = [[] for _ in range(first, end)]
        for run in runs:
            tokens[run.worn.slot - first].extend((row, run.worn) for row in range(run.start, run.end))
        self._width = max(len(worn) for worn in tokens)
        places = [worn[i] if i < len(worn) else None for worn in tokens for i in range(self._width)]
        rows = [place[0] for place in places if place is not None]
        self._asking = _index([place[0] if place else rows[0] for place in places], bank.device)
        self._rows = _index(rows, bank.device)
        kept = [i for i, place in enumerate(places) if place is not None]
        self._kept = None if len(kept) == len(places) else torch.tensor(kept, device=bank.device)
        nothing = (0.0,) * bank.layers
        table = torch.tensor([place[1].factors if place else nothing for place in places], dtype=bank.dtype, device=bank.device)
        self._factors = table.T.reshape(bank.layers, end - first, self._width, 1)
        self._products = bank.range(first, end)

    def add(self, layer: int, x: Tensor, y: Tensor) -> None:
        down, up = self._products[layer]
        asking = _take(x, self._asking).view(down.shape[0], self._width, -1)
        delta = torch.bmm(torch.bmm(asking, down) * self._factors[layer], up).view(-1, y.shape[-1])
        if self._kept is not None:
            delta = delta.index_select(0, self._kept)
        if isinstance(self._rows, slice):
            y[self._rows].add_(delta)
        else:
            y.index_add_(0, self._rows, delta)


class Router:
    """The routes of the step in progress, read by every `RoutedLinear` of a model."""

    def __init__(self) -> None:
        self.routes: tuple[Adds, ...] = ()


class RoutedLinear(nn.Linear):
    """Shares its weights with the layer it stands for and has its name, so that the model looks the same from outside."""

    def __init__(self, linear: nn.Linear, layer: int, router: Router) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self._layer = layer
        self._router = router
        self._own = forward_of(linear)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self._own(x)
        for route in self._router.routes:
            route.add(self._layer, x, y)
        return y


def install(model: nn.Module, layers: Mapping[str, nn.Linear], router: Router) -> None:
    """Put a `RoutedLinear` in the place of each named layer; its number is its place in `layers`."""
    for number, (name, linear) in enumerate(layers.items()):
        replace(model, name, RoutedLinear(linear, number, router))


def uninstall(model: nn.Module, layers: Mapping[str, nn.Linear]) -> None:
    for name, linear in layers.items():
        replace(model, name, linear)


def installed(model: nn.Module) -> bool:
    return any(isinstance(module, RoutedLinear) for module in model.modules())


def replace(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, layer)


def _joined(runs: Iterable[Run]) -> list[Run]:
    """Neighbouring runs of the same slot and factors as one."""
    joined: list[Run] = []
    for run in runs:
        last = joined[-1] if joined else None
        if last and last.end == run.start and last.worn.slot == run.worn.slot and last.worn.factors == run.worn.factors:
            joined[-1] = Run(worn=last.worn, start=last.start, end=run.end)
        else:
            joined.append(run)
    return joined


def _parts(bank: AdapterBank, runs: Sequence[Run]) -> Iterator[Part]:
    short = sorted((run for run in runs if run.end - run.start <= SMALL), key=lambda run: run.worn.slot)
    slots = [slot for slot, _ in groupby(run.worn.slot for run in short)]
    batched = len(slots) >= WORTH_BATCHING and slots[-1] - slots[0] < 2 * len(slots)
    if batched:
        yield _Batched(bank, slots[0], slots[-1] + 1, short)
    for run in runs:
        if not batched or run.end - run.start > SMALL:
            yield _Dense(bank, run)


def _index(rows: list[int], device: torch.device) -> slice | Tensor:
    """A slice where the rows are consecutive: no copy."""
    if rows == list(range(rows[0], rows[0] + len(rows))):
        return slice(rows[0], rows[0] + len(rows))
    return torch.tensor(rows, device=device)


def _take(x: Tensor, rows: slice | Tensor) -> Tensor:
    return x[rows] if isinstance(rows, slice) else x.index_select(0, rows)
