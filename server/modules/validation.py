"""What must hold before any tensor of an artefact touches a slot.

Each check raises ValueError with the reason, for the log and the quarantine record; Unsupported is one that tells of no damage. Knows
nothing of directories: it is given bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Set
from typing import Any, TypeVar

import safetensors.torch
import torch
from torch import Tensor

from server.engine.request import ArtefactRef
from server.modules.composition import Composition
from server.modules.digest import composition_digest
from server.modules.digested_read import DigestedRead
from server.modules.layout import UNREADABLE, layout_of, views
from server.modules.manifest import ArtefactKind, Manifest, Unsupported
from server.modules.peft_format import adapter_config, tensor_names

Shapes = Mapping[str, tuple[int, int]]
"""layer -> (out, in) of every linear layer of the base model that an adapter may act on."""

DTYPES = frozenset({torch.float32, torch.bfloat16})
Data = TypeVar("Data")
Found = TypeVar("Found")
_HEADER_BYTES_A_TENSOR = 1024
_HEADER_BYTES = 64 * 1024


def check_manifest(manifest: Manifest, ref: ArtefactRef, shapes: Shapes, max_rank: int) -> None:
    """The manifest says what the database row says, and asks for no layer or rank that the engine does not have."""
    kind = ArtefactKind.KNOWLEDGE_MODULE if ref.composition is None else ArtefactKind.KNOWLEDGE_EXTRACTOR
    if manifest.kind != kind:
        raise ValueError(f"the manifest's kind is {manifest.kind}, not {kind}")
    if manifest.scope != ref.scope:
        raise ValueError(f"the manifest's scope is {manifest.scope}, not {ref.scope}")
    if manifest.rank > max_rank:
        raise Unsupported(f"its rank {manifest.rank} is above the limit of {max_rank}; raise `max_rank`")
    unknown = sorted(set(manifest.targets) - shapes.keys())
    if unknown:
        raise Unsupported(f"the base model has no layer {unknown[0]} that an adapter may act on")


def check_config(data: bytearray, manifest: Manifest) -> None:
    """The adapter config says what the manifest says and nothing else; only its base model's name is free."""
    try:
        config = json.loads(data)
        config["target_modules"] = sorted(config["target_modules"])
        name = config["base_model_name_or_path"]
    except (ValueError, RecursionError, KeyError, TypeError):
        raise ValueError("the adapter config is not a LoRA config") from None
    expected = adapter_config(rank=manifest.rank, alpha=manifest.alpha, targets=manifest.targets, base_model_name=name)
    wrong = sorted(key for key in config.keys() | expected.keys() if not _same(config, expected, key))
    if wrong or not isinstance(name, str):
        raise ValueError(f"the adapter config differs from the manifest in {wrong or ['base_model_name_or_path']}")


def adapter_bytes(manifest: Manifest, shapes: Shapes) -> int:
    """The longest that the file of the manifest's tensors may be."""
    elements = sum(sum(shapes[layer]) * manifest.rank for layer in manifest.targets)
    return elements * torch.float32.itemsize + 2 * len(manifest.targets) * _HEADER_BYTES_A_TENSOR + _HEADER_BYTES


def composition_bytes(manifest: Manifest) -> int:
    return len(manifest.targets) * (2 * torch.float32.itemsize + _HEADER_BYTES_A_TENSOR) + _HEADER_BYTES


def lora_tensors(
    data: bytearray, manifest: Manifest, shapes: Shapes, digest: str, read: DigestedRead
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A [r, in] and B [out, r] of exactly the manifest's targets, one dtype, all finite, with the expected digest; views of `data`, which
    `read` has seen coming."""
    layout = _readable(layout_of, data, "the adapter")
    found = layout.places
    expected = _expected_shapes(manifest, shapes)
    _check_names(found, expected.keys())
    for name, shape in expected.items():
        _check_tensor(name, found[name].dtype, found[name].shape, shape)
    if len({place.dtype for place in found.values()}) > 1:
        raise ValueError("the tensors have several dtypes")
    flat, tensors = views(data, layout)
    _check_finite(flat, tensors)
    if read.hexdigest(memoryview(data), layout) != digest:
        raise ValueError("the digest of the tensors is not the expected one")
    names = [(layer, *tensor_names(layer)) for layer in manifest.targets]
    return {layer: tensors[a] for layer, a, _ in names}, {layer: tensors[b] for layer, _, b in names}


def composition_weights(data: bytearray, manifest: Manifest, lora: str, digest: str) -> Composition:
    """The weights of exactly the manifest's targets, float32, finite, with the expected digest."""
    found = _readable(safetensors.torch.load, bytes(data), "the composition")
    _check_names(found, {"w_km", "w_ke"})
    layers = _layer_names(data)
    if layers != manifest.targets:
        raise ValueError("the composition's layers are not the manifest's targets")
    for name, tensor in found.items():
        _check_tensor(name, tensor.dtype, tuple(tensor.shape), (len(layers),))
        if tensor.dtype != torch.float32:
            raise ValueError(f"{name} is not float32")
    _check_finite(torch.cat(list(found.values())), found)
    composition = Composition(layers=layers, w_km=found["w_km"], w_ke=found["w_ke"])
    if composition_digest(composition, lora) != digest:
        raise ValueError("the digest of the composition is not the expected one")
    return composition


def _same(config: Mapping[str, Any], expected: Mapping[str, Any], key: str) -> bool:
    """Equal in type too: JSON's 1 and true are equal in Python."""
    if key not in config or key not in expected:
        return False
    return json.dumps(config[key], sort_keys=True) == json.dumps(expected[key], sort_keys=True)


def _readable(parse: Callable[[Data], Found], data: Data, what: str) -> Found:
    try:
        return parse(data)
    except UNREADABLE as error:
        raise ValueError(f"{what} is no readable safetensors file: {error}") from None


def _layer_names(data: bytearray) -> tuple[str, ...]:
    """The layer names in the header of a file whose tensors are already read, so that the header's length is right."""
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    try:
        names = json.loads(header["__metadata__"]["layers"])
    except (ValueError, RecursionError, KeyError, TypeError):
        raise ValueError("the composition names no layers") from None
    if not isinstance(names, list):
        raise ValueError("the composition's layers are not a list")
    return tuple(names)


def _expected_shapes(manifest: Manifest, shapes: Shapes) -> dict[str, tuple[int, ...]]:
    expected: dict[str, tuple[int, ...]] = {}
    for layer in manifest.targets:
        out_features, in_features = shapes[layer]
        a, b = tensor_names(layer)
        expected |= {a: (manifest.rank, in_features), b: (out_features, manifest.rank)}
    return expected


def _check_names(found: Mapping[str, object], expected: Set[str]) -> None:
    if missing := sorted(expected - found.keys()):
        raise ValueError(f"tensor {missing[0]} is missing")
    if extra := sorted(found.keys() - expected):
        raise ValueError(f"tensor {extra[0]} is unexpected")


def _check_tensor(name: str, dtype: torch.dtype, found: tuple[int, ...], shape: tuple[int, ...]) -> None:
    if found != shape:
        raise ValueError(f"tensor {name} has shape {list(found)}, not {list(shape)}")
    if dtype not in DTYPES:
        raise ValueError(f"tensor {name} has dtype {dtype}")


def _check_finite(flat: Tensor, tensors: Mapping[str, Tensor]) -> None:
    """`flat` holds all of them: looked at in one go, for it stands in the way of every load; extremes are not finite where anything is
    not."""
    if all(bool(torch.isfinite(extreme)) for extreme in torch.aminmax(flat)):
        return
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"tensor {name} is not finite")
