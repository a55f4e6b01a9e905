"""The student: the base model with a trainable LoRA (PEFT), put on and taken off without a trace."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from server.engine.base_model import adapted_layers
from worker.training.recipe import Schedule
from worker.training.worn import WeightOf

_PREFIX = "base_model.model."
_ADAPTER = "default"
"""PEFT's name for the only adapter."""


class Student:
    """`body` is the decoder below the head, adapters included; `a` and `b` are the LoRA factors by layer name."""

    def __init__(self, model: PreTrainedModel, recipe: Schedule, seed: int, weight_of: WeightOf | None = None) -> None:
        """`weight_of`: what a composition multiplies the trained LoRA's product by in each layer."""
        torch.manual_seed(seed)
        config = LoraConfig(
            r=recipe.rank,
            lora_alpha=int(recipe.alpha),
            lora_dropout=recipe.dropout,
            target_modules=sorted(adapted_layers(model)),
            bias="none",
            task_type="CAUSAL_LM",
        )
        self.base = model
        self.peft: PeftModel = get_peft_model(model, config)
        self.scaling = recipe.alpha / recipe.rank
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

    @contextmanager
    def bare(self) -> Iterator[None]:
        """Inside, the body is the bare base model."""
        with self.peft.disable_adapter():
            yield

    def train(self, mode: bool) -> None:
        self.peft.train(mode)

    def unload(self) -> Any:
        return self.peft.unload()

    def _weigh(self, weight_of: WeightOf) -> None:
        for name, module in self.peft.named_modules():
            layer, found, _ = name.removeprefix(_PREFIX).partition(f".lora_B.{_ADAPTER}")
            if found:
                module.register_forward_hook(partial(_weighted, weight_of, layer))


def _weighted(weight_of: WeightOf, layer: str, module: nn.Module, inputs: Any, product: Tensor) -> Tensor:
    weight = weight_of(layer)
    return product if weight is None else product * weight
