"""Digests by content: of a LoRA, of a composition over one. Never over config files' bytes.

PEFT's `target_modules` order changes with PYTHONHASHSEED and its base model name may be a path, so equal artefacts have unequal files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache

import torch
from torch import Tensor

from server.modules.canonical import canonical_json
from server.modules.composition import Composition
from server.modules.manifest import Manifest
from server.modules.peft_format import named_tensors


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The elements of a tensor as stored in a safetensors file, row by row; no copy for a contiguous one on the CPU."""
    if tensor.requires_grad or tensor.device.type != "cpu" or not tensor.is_contiguous():
        tensor = tensor.detach().cpu().contiguous()
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def lora_digest(a: Mapping[str, Tensor], b: Mapping[str, Tensor], manifest: Manifest) -> str:
    """Of a LoRA in memory."""
    digest = LoraDigest(manifest)
    for name, tensor in sorted(named_tensors(a, b).items()):
        digest.add(name, tensor.dtype, tuple(tensor.shape), tensor_bytes(tensor))
    return digest.hexdigest()


class LoraDigest:
    """sha256 over what a LoRA's tensors mean (r, alpha, targets, scope, base, wears) and the tensors: name, dtype, shape, bytes."""

    def __init__(self, manifest: Manifest) -> None:
        meaning = {
            "r": manifest.rank,
            "alpha": float(manifest.alpha),
            "targets": sorted(manifest.targets),
            "scope": manifest.scope,
            "base_fingerprint": manifest.base_fingerprint,
            "wears": manifest.wears,
        }
        self._sha256 = hashlib.sha256(canonical_json(meaning))

    def add(self, name: str, dtype: torch.dtype, shape: tuple[int, ...], data: memoryview) -> None:
        """One after the other, sorted by their names."""
        self._sha256.update(_heading(name, dtype, shape))
        self._sha256.update(data)

    def hexdigest(self) -> str:
        return self._sha256.hexdigest()


def composition_digest(composition: Composition, lora: str) -> str:
    """sha256 over the lora's digest, the layer names in order and the float32 weights."""
    sha256 = hashlib.sha256(canonical_json({"lora": lora, "layers": list(composition.layers)}))
    for weights in (composition.w_km, composition.w_ke):
        sha256.update(tensor_bytes(weights.to(torch.float32)))
    return sha256.hexdigest()


@lru_cache(maxsize=4096)
def _heading(name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> bytes:
    return canonical_json([name, dtype_name(dtype), list(shape)])
