"""The student: the base model with a trainable LoRA on linear layers, usually all but the head, put on and taken off without a trace.

    y = W x + w * (alpha / rank) * B A dropout(x)        (Hu et al. 2021; w is a composition's weight, 1 without one)

A is drawn as PEFT draws it, B is zero. The factors are float32 at least, whatever the base computes in.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from server.engine.prompt import Prompt
from server.engine.routed_lora import replace
from worker.training.adapted import layers_to_train
from worker.training.blockwise import wide
from worker.training.fit import B_FACTOR
from worker.training.recipe import Adapted, Reading, Schedule
from worker.training.states import OURS, prompt_states
from worker.training.worn import Wearing, WeightOf, taken_off

A_FACTOR = ".lora_a"


class TrainedLinear(nn.Linear):
    """A linear layer, or what stands in its place with all that it adds, and the LoRA that is trained on it."""

    def __init__(self, own: nn.Linear, layer: str, recipe: Schedule, weight_of: WeightOf) -> None:
        super().__init__(own.in_features, own.out_features, bias=own.bias is not None, device="meta")
        self.weight, self.bias = own.weight, own.bias
        self.own = own
        self.on = True
        self._layer, self._weight_of = layer, weight_of
        self._scaling, self._dropout = recipe.alpha / recipe.rank, recipe.dropout
        dtype, device = wide(own.weight.dtype), own.weight.device
        drawn = nn.init.kaiming_uniform_(torch.empty(recipe.rank, own.in_features, dtype=dtype), a=math.sqrt(5))
        self.lora_a = nn.Parameter(drawn.to(device))
        self.lora_b = nn.Parameter(torch.zeros(own.out_features, recipe.rank, dtype=dtype, device=device))

    def forward(self, input: Tensor) -> Tensor:
        x_TI = input.reshape(-1, self.in_features)
        y_TO: Tensor = self.own(x_TI)
        if self.on:
            y_TO = self._add(x_TI, y_TO)
        return y_TO.view(*input.shape[:-1], self.out_features)

    def _add(self, x_TI: Tensor, y_TO: Tensor) -> Tensor:
        x_TI = nn.functional.dropout(x_TI, self._dropout, self.training) if self._dropout else x_TI
        low_TR = nn.functional.linear(x_TI, self.lora_a.to(x_TI.dtype))
        weight = self._weight_of(self._layer)
        if self._scaling != 1 or weight is not None:
            low_TR = low_TR * (self._scaling if weight is None else weight * self._scaling)
        return y_TO.addmm_(low_TR, self.lora_b.to(x_TI.dtype).t())


class Student:
    """`body` is the decoder below the head, adapters included; `unload` leaves the model as it was."""

    def __init__(
        self,
        model: PreTrainedModel,
        recipe: Schedule,
        seed: int,
        weight_of: WeightOf | None = None,
        worn: Sequence[Wearing] = (),
        adapted: Adapted = "all",
    ) -> None:
        """`weight_of`: what a composition multiplies the trained LoRA's product by in each layer. `worn`: what the model wears already.

        Raises InvalidInput for a model whose layers' names do not tell which are `adapted`.
        """
        torch.manual_seed(seed)
        self.base = model
        self.unworn = self._nothing_on if recipe.scope == "answer" else None
        """What bare segments are read within under scope `answer`."""
        self._worn = worn
        self._own = layers_to_train(model, adapted)
        self._layers = {name: TrainedLinear(own, name, recipe, weight_of or _one) for name, own in self._own.items()}
        for name, layer in self._layers.items():
            replace(model, name, layer)

    @property
    def body(self) -> nn.Module:
        return self.base.base_model

    def parameters(self) -> dict[str, nn.Parameter]:
        """Trainable tensors by name, sorted so that an order never depends on hashing."""
        sides = {name: (layer.lora_a, layer.lora_b) for name, layer in self._layers.items()}
        return {name + factor: part for name, parts in sides.items() for factor, part in zip((A_FACTOR, B_FACTOR), parts, strict=True)}

    def factors(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """(A by layer [r, in], B by layer [out, r]), detached copies on the CPU."""
        return (
            {name: layer.lora_a.detach().cpu().clone() for name, layer in self._layers.items()},
            {name: layer.lora_b.detach().cpu().clone() for name, layer in self._layers.items()},
        )

    @torch.no_grad()
    def wear(self, a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> None:
        """Overwrite the factors, e.g. with those of a published artefact."""
        for name, layer in self._layers.items():
            layer.lora_a.copy_(a[name])
            layer.lora_b.copy_(b[name])

    def states(
        self, prompts: Sequence[Prompt], targets: Sequence[tuple[int, ...]], device: torch.device, *, reading: Reading = OURS
    ) -> list[Tensor]:
        """States of layers 1..L [N, H] where they predict the targets' tokens, in the scope of the recipe."""
        return prompt_states(self.body, prompts, targets, device, unworn=self.unworn, reading=reading)

    @contextmanager
    def bare(self) -> Iterator[None]:
        """Inside, the trained LoRA is off."""
        before = {name: layer.on for name, layer in self._layers.items()}
        self._switch(dict.fromkeys(before, False))
        try:
            yield
        finally:
            self._switch(before)

    def train(self, mode: bool) -> None:
        for layer in self._layers.values():
            layer.training = mode

    def unload(self) -> None:
        for name, own in self._own.items():
            replace(self.base, name, own)

    @contextmanager
    def _nothing_on(self) -> Iterator[None]:
        with self.bare(), taken_off(self._worn):
            yield

    def _switch(self, on: Mapping[str, bool]) -> None:
        for name, layer in self._layers.items():
            layer.on = on[name]


def _one(layer: str) -> None:
    """No weight: 1."""
