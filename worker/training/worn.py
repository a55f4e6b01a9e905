"""Frozen LoRAs on a model that is being trained: linear layers that wear them stand where the model's own stood, and the student's stand
around these.

    y = W x + sum over worn of  weight[l] * s * B A x

A wearing may hold many LoRAs of one shape, of which each row of a pack wears its own or none: the modules of a batch's documents.
Gradients flow through everything, into `weight` too where that is a parameter; the factors are constants.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from server.engine.base_model import BaseModel, adapted_layers
from server.engine.request import ArtefactRef
from server.engine.routed_lora import replace
from server.modules.artefact import Artefact, read_artefact
from worker.training.packing import Run

WeightOf = Callable[[str], Tensor | None]
"""Of a layer: a number, constant or part of a parameter; None is 1."""


class Wearing:
    """One place in the sum above. `runs`: which LoRA the tokens of the running pack wear, by their `group`, -1 for none; None: all wear the
    first."""

    def __init__(self, artefacts: Sequence[Artefact], weight_of: WeightOf, like: Tensor) -> None:
        """`like` has the dtype and device of the base. Raises ValueError for LoRAs of several shapes."""
        if len({(artefact.manifest.rank, artefact.manifest.targets) for artefact in artefacts}) != 1:
            raise ValueError("the LoRAs worn together must have one rank and the same layers")
        self.runs: Sequence[Run] | None = None
        self.on = True
        self._weight_of = weight_of
        self._a = {layer: _stack([one.a[layer] for one in artefacts], like) for layer in artefacts[0].a}
        self._b = {layer: _stack([one.b[layer] * one.scaling for one in artefacts], like) for layer in artefacts[0].b}

    def add(self, layer: str, x_TI: Tensor, y_TO: Tensor) -> Tensor:
        """`y_TO`, which is used up, and what is worn."""
        if layer not in self._a:
            return y_TO
        weight = self._weight_of(layer)
        if self.runs is None:
            return y_TO.addmm_(self._low(layer, 0, x_TI, weight), self._b[layer][0].t())
        return y_TO + torch.cat([self._product(layer, run.group, x_TI[run.start : run.end], weight) for run in self.runs])

    def _product(self, layer: str, number: int, x_TI: Tensor, weight: Tensor | None) -> Tensor:
        if number < 0:
            return x_TI.new_zeros(len(x_TI), self._b[layer].shape[1])
        return nn.functional.linear(self._low(layer, number, x_TI, weight), self._b[layer][number])

    def _low(self, layer: str, number: int, x_TI: Tensor, weight: Tensor | None) -> Tensor:
        low_TR = nn.functional.linear(x_TI, self._a[layer][number])
        return low_TR if weight is None else low_TR * weight


class WornLinear(nn.Linear):
    """A linear layer with its own weights and what is worn on top."""

    def __init__(self, own: nn.Linear, layer: str, wearings: Sequence[Wearing]) -> None:
        super().__init__(own.in_features, own.out_features, bias=own.bias is not None, device="meta")
        self.weight, self.bias = own.weight, own.bias
        self._layer = layer
        self._wearings = wearings

    def forward(self, input: Tensor) -> Tensor:
        x_TI = input.reshape(-1, self.in_features)
        y_TO = super().forward(x_TI)
        for wearing in self._wearings:
            if wearing.on:
                y_TO = wearing.add(self._layer, x_TI, y_TO)
        return y_TO.view(*input.shape[:-1], self.out_features)


@contextmanager
def wearing(model: PreTrainedModel, wearings: Sequence[Wearing]) -> Iterator[None]:
    """Within, the model wears them; afterwards it is as it was."""
    layers = adapted_layers(model) if wearings else {}
    for name, own in layers.items():
        replace(model, name, WornLinear(own, name, wearings))
    try:
        yield
    finally:
        for name, own in layers.items():
            replace(model, name, own)


@contextmanager
def taken_off(wearings: Sequence[Wearing]) -> Iterator[None]:
    """Within, those of them that the model wears are not worn."""
    before = [each.on for each in wearings]
    for each in wearings:
        each.on = False
    try:
        yield
    finally:
        for each, on in zip(wearings, before, strict=True):
            each.on = on


def like(base: BaseModel) -> Tensor:
    """Has the dtype and the device that what is worn must have."""
    return torch.empty(0, dtype=base.dtype, device=base.device)


def proven(base: BaseModel, ref: ArtefactRef) -> Artefact:
    """What is worn, read for this base and of any rank. Raises what `read_artefact` raises."""
    shapes = {name: (layer.out_features, layer.in_features) for name, layer in adapted_layers(base.model).items()}
    return read_artefact(ref, base.fingerprint, shapes, max(min(shape) for shape in shapes.values()))


def worn_extractor(extractor: Artefact, like: Tensor) -> Wearing:
    """An extractor as every row wears it, each layer by its composition's w_ke."""
    return Wearing([extractor], _side(extractor, 1, like), like)


def module_weights(extractor: Artefact, like: Tensor) -> WeightOf:
    """What the extractor's composition multiplies a module's product by in each layer."""
    return _side(extractor, 0, like)


def _side(extractor: Artefact, side: int, like: Tensor) -> WeightOf:
    composition = extractor.composition
    assert composition is not None, "an extractor has a composition"
    weights = {layer: composition.weights(layer)[side] for layer in composition.layers}
    return {layer: torch.tensor(weight, dtype=like.dtype, device=like.device) for layer, weight in weights.items() if weight != 1}.get


def _stack(tensors: Sequence[Tensor], like: Tensor) -> Tensor:
    return torch.stack([tensor.to(like.device, like.dtype) for tensor in tensors])
