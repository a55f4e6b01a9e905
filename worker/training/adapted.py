"""Which of a model's linear layers a LoRA is trained on, told by their names, which are those of transformers."""

from __future__ import annotations

import re
from typing import Final

from torch import nn
from transformers import PreTrainedModel

from server.engine.base_model import adapted_layers
from server.errors import InvalidInput
from worker.training.recipe import Adapted

_BLOCK: Final = re.compile(r"\.(\d+)\.")
_ATTENTION: Final = re.compile(r"\.\w*(attn|attention)\w*\.")


def layers_to_train(model: PreTrainedModel, adapted: Adapted) -> dict[str, nn.Linear]:
    """Of `adapted_layers`, in their order; `mlp` are all but attention's. Raises InvalidInput where the names do not tell."""
    layers = adapted_layers(model)
    if adapted == "all":
        return layers
    attention = {name for name in layers if _ATTENTION.search(name)}
    chosen = {"attention": attention, "mlp": layers.keys() - attention, "upper": _upper(layers)}[adapted]
    if not 0 < len(chosen) < len(layers):
        raise InvalidInput(f"the names of this model's layers do not tell which are its {adapted} ones: let the recipe's `adapted` be all")
    return {name: layer for name, layer in layers.items() if name in chosen}


def _upper(layers: dict[str, nn.Linear]) -> set[str]:
    blocks = {name: int(found[1]) for name in layers if (found := _BLOCK.search(name))}
    half = (max(blocks.values(), default=0) + 1) / 2
    return {name for name, block in blocks.items() if block >= half}
