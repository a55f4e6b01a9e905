"""How PEFT spells a LoRA: the names of its tensors and the adapter config. Knows nothing of manifests or files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor


def tensor_names(layer: str) -> tuple[str, str]:
    """The names of a layer's A [r, in] and B [out, r]."""
    return f"base_model.model.{layer}.lora_A.weight", f"base_model.model.{layer}.lora_B.weight"


def named_tensors(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All tensors of a LoRA under PEFT's names."""
    named = {tensor_names(layer)[0]: tensor for layer, tensor in a.items()}
    return named | {tensor_names(layer)[1]: tensor for layer, tensor in b.items()}


def adapter_config(*, rank: int, alpha: float, targets: Iterable[str], base_model_name: str) -> dict[str, Any]:
    """What PEFT and vLLM need to load the tensors as they are: explicit targets, no rank-stabilised scaling, no patterns."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model_name,
        "r": rank,
        "lora_alpha": int(alpha) if float(alpha).is_integer() else alpha,
        "target_modules": sorted(targets),
        "rank_pattern": {},
        "alpha_pattern": {},
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
        "inference_mode": True,
    }
