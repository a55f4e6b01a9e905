"""The student: the base model with a trainable LoRA (PEFT), put on and taken off without a trace."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from server.engine.base_model import adapted_layers
from server.engine.prompt import Prompt
from worker.training.recipe import Reading, Schedule
from worker.training.states import OURS, prompt_states
from worker.training.worn import Wearing, WeightOf, taken_off

_PREFIX = "base_model.model."
_ADAPTER = "default"
"""PEFT's name for the only adapter."""


class Student:
    """`body` is the decoder below the head, adapters included; `a` and `b` are the LoRA factors by layer name."""

    def __init__(
        self, model: PreTrainedModel, recipe: Schedule, seed: int, weight_of: WeightOf | None = None, worn: Sequence[Wearing] = ()
    ) -> None:
        """`weight_of`: what a composition multiplies the trained LoRA's product by in each layer. `worn`: what the model wears already."""
        torch.manual_seed(seed)
        config = LoraConfig(
            r=recipe.rank,
            lora_alpha=recipe.alpha,  # type: ignore[arg-type]  # it multiplies by whatever it is given
            lora_dropout=recipe.dropout,
            target_modules=sorted(adapted_layers(model)),
            bias="none",
            task_type="CAUSAL_LM",
        )
        self.base = model
        self.peft: PeftModel = get_peft_model(model, config)
        self.scaling = recipe.alpha / recipe.rank
        self.unworn = self._nothing_on if recipe.scope == "answer" else None
        """What bare segments are read within under scope `answer`."""
        self._worn = worn
        self._bare = False
        if weight_of is not None:
            self._weigh(weight_of)

    @property
    def body(self) -> nn.Module:
        return self.base.base_model

    def parameters(self) -> dict[str, nn.Parameter]:
        """Trainable tensors by PEFT's name, sorted so that an order never depends on hashing."""
        return {name: p for name, p in sorted(self.peft.named_parameters()) if p.requires_grad}

    def factors(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """(A by layer [r, in], B by layer [out, r]), detached copies on the CPU."""
        a: dict[str, Tensor] = {}
        b: dict[str, Tensor] = {}
        for name, parameter in self.parameters().items():
            layer, side, *_ = name.removeprefix(_PREFIX).rpartition(".lora_")[0], name.rpartition(".lora_")[2][0]
            (a if side == "A" else b)[layer] = parameter.detach().cpu().clone()
        return a, b

    @torch.no_grad()
    def wear(self, a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> None:
        """Overwrite the factors, e.g. with those of a published artefact."""
        for name, parameter in self.parameters().items():
            layer, side = name.removeprefix(_PREFIX).rpartition(".lora_")[0], name.rpartition(".lora_")[2][0]
            parameter.copy_((a if side == "A" else b)[layer])

    def states(
        self,
        prompts: Sequence[Prompt],
        targets: Sequence[tuple[int, ...]],
        device: torch.device,
        *,
        reading: Reading = OURS,
        alike: bool = True,
    ) -> list[Tensor]:
        """States of layers 1..L [N, H] where they predict the targets' tokens, in the scope of the recipe."""
        return prompt_states(self.body, prompts, targets, device, unworn=self.unworn, reading=reading, alike=alike)

    @contextmanager
    def bare(self) -> Iterator[None]:
        """Inside, the trained LoRA is off."""
        if self._bare:
            yield
            return
        self._bare = True
        try:
            with self.peft.disable_adapter():
                yield
        finally:
            self._bare = False

    def train(self, mode: bool) -> None:
        self.peft.train(mode)

    def unload(self) -> Any:
        return self.peft.unload()

    @contextmanager
    def _nothing_on(self) -> Iterator[None]:
        with self.bare(), taken_off(self._worn):
            yield

    def _weigh(self, weight_of: WeightOf) -> None:
        for name, module in self.peft.named_modules():
            layer, found, _ = name.removeprefix(_PREFIX).partition(f".lora_B.{_ADAPTER}")
            if found:
                module.register_forward_hook(partial(_weighted, weight_of, layer))


def _weighted(weight_of: WeightOf, layer: str, module: nn.Module, inputs: Any, product: Tensor) -> Tensor:
    weight = weight_of(layer)
    return product if weight is None else product * weight
