"""A forger who can also write the database row: digests and hashes fit, and the check behind them must still refuse what the engine
could not serve.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from server.engine.request import ArtefactRef
from server.modules.artefact import write_artefact
from server.modules.canonical import canonical_json
from server.modules.composition import Composition
from server.modules.digest import composition_digest, lora_digest
from server.modules.manifest import parse_manifest
from server.modules.peft_format import tensor_names
from tests.support.artefacts import (
    ADAPTER,
    BASE_NAME,
    COMPOSITION,
    CONFIG,
    MANIFEST,
    OTHER,
    SHAPES,
    composition,
    extractor_manifest,
    lora,
    manifest,
    read,
    refused,
    write_extractor,
    write_module,
)

LAYER = next(iter(SHAPES))
A, B = tensor_names(LAYER)


def forged(directory: Path, tensors: Mapping[str, Tensor], **changes: Any) -> ArtefactRef:
    """A module whose row fits its files, whatever is in them."""
    ref = write_module(directory, **changes)
    (directory / ADAPTER).write_bytes(safetensors.torch.save(dict(tensors)))
    described = manifest(**changes)
    sides = [{layer: tensors[names[side]] for layer in SHAPES if (names := tensor_names(layer))[side] in tensors} for side in (0, 1)]
    return replace(ref, digest=lora_digest(sides[0], sides[1], described))


def pristine() -> dict[str, Tensor]:
    a, b = lora()
    return {name: tensor for layer in SHAPES for name, tensor in zip(tensor_names(layer), (a[layer], b[layer]), strict=True)}


def _put(tensor: Tensor, value: float) -> Tensor:
    changed = tensor.clone()
    changed[-1, -1] = value
    return changed


def _renamed(tensors: dict[str, Tensor], old: str, new: str) -> dict[str, Tensor]:
    return {new if name == old else name: tensor for name, tensor in tensors.items()}


FORGERIES: dict[str, tuple[Callable[[dict[str, Tensor]], dict[str, Tensor]], str]] = {
    "no tensors": (lambda t: {}, "is missing"),
    "A missing": (lambda t: {k: v for k, v in t.items() if k != A}, f"{A} is missing"),
    "B missing": (lambda t: {k: v for k, v in t.items() if k != B}, f"{B} is missing"),
    "layer missing": (lambda t: {k: v for k, v in t.items() if LAYER not in k}, "is missing"),
    "extra tensor": (lambda t: t | {"extra": torch.ones(1)}, "extra is unexpected"),
    "head adapted": (lambda t: t | {tensor_names("lm_head")[0]: torch.ones(4, 6)}, "lm_head.lora_A.weight is unexpected"),
    "DoRA magnitude": (lambda t: t | {A.replace("lora_A", "lora_magnitude_vector"): torch.ones(6)}, "is unexpected"),
    "bias": (lambda t: t | {A.replace("weight", "bias"): torch.ones(6)}, "is unexpected"),
    "name without prefix": (lambda t: _renamed(t, A, A.removeprefix("base_model.model.")), f"{A} is missing"),
    "name of an adapter": (lambda t: _renamed(t, A, A.replace("lora_A", "lora_A.default")), f"{A} is missing"),
    "name in other case": (lambda t: _renamed(t, A, A.upper()), f"{A} is missing"),
    "name with a space": (lambda t: _renamed(t, B, f"{B} "), f"{B} is missing"),
    "A transposed": (lambda t: t | {A: t[A].T.contiguous()}, "has shape [10, 4], not [4, 10]"),
    "B transposed": (lambda t: t | {B: t[B].T.contiguous()}, "has shape [4, 6], not [6, 4]"),
    "A and B exchanged": (lambda t: t | {A: t[B], B: t[A]}, "has shape"),
    "rank below": (lambda t: t | {A: t[A][:3].contiguous(), B: t[B][:, :3].contiguous()}, "has shape [3, 10]"),
    "rank above": (lambda t: t | {A: torch.cat([t[A], t[A]]), B: torch.cat([t[B], t[B]], 1)}, "has shape [8, 10]"),
    "flat": (lambda t: t | {A: t[A].reshape(-1)}, "has shape [40]"),
    "three dimensions": (lambda t: t | {A: t[A][None]}, "has shape [1, 4, 10]"),
    "scalar": (lambda t: t | {A: torch.tensor(1.0)}, "has shape []"),
    "empty": (lambda t: t | {A: torch.empty(0, 10)}, "has shape [0, 10]"),
    "NaN in A": (lambda t: t | {A: _put(t[A], float("nan"))}, f"{A} is not finite"),
    "NaN in B": (lambda t: t | {B: _put(t[B], float("nan"))}, f"{B} is not finite"),
    "infinity in A": (lambda t: t | {A: _put(t[A], float("inf"))}, f"{A} is not finite"),
    "infinity in B": (lambda t: t | {B: _put(t[B], float("-inf"))}, f"{B} is not finite"),
    "NaN in bfloat16": (lambda t: {k: _put(v, float("nan")).bfloat16() for k, v in t.items()}, "is not finite"),
    "float16": (lambda t: {k: v.half() for k, v in t.items()}, "dtype torch.float16"),
    "float64": (lambda t: {k: v.double() for k, v in t.items()}, "dtype torch.float64"),
    "8 bits": (lambda t: {k: v.to(torch.float8_e4m3fn) for k, v in t.items()}, "dtype torch.float8_e4m3fn"),
    "integers": (lambda t: {k: v.to(torch.int32) for k, v in t.items()}, "dtype torch.int32"),
    "booleans": (lambda t: {k: v > 0 for k, v in t.items()}, "dtype torch.bool"),
    "complex": (lambda t: t | {A: t[A].to(torch.complex64)}, "dtype torch.complex64"),
    "two dtypes": (lambda t: t | {A: t[A].bfloat16()}, "several dtypes"),
}


@pytest.mark.parametrize(("change", "reason"), FORGERIES.values(), ids=FORGERIES)
def test_tensors_that_fit_their_row_but_not_the_manifest(
    tmp_path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]], reason: str
) -> None:
    refused(forged(tmp_path / "module", change(pristine())), reason)


def test_an_unchanged_forgery_is_read(tmp_path: Path) -> None:
    """So the forgeries above are refused for their change, not for being forged."""
    assert read(forged(tmp_path / "module", pristine())).manifest == manifest()


def test_layers_exchanged_under_the_old_digest(tmp_path: Path) -> None:
    ref = write_module(tmp_path / "module")
    tensors = pristine()
    first, second = (tensor_names(f"model.layers.{index}.mlp.down_proj")[0] for index in (0, 1))
    (ref.directory / ADAPTER).write_bytes(safetensors.torch.save(tensors | {first: tensors[second], second: tensors[first]}))
    refused(ref, "digest of the tensors")


@pytest.mark.parametrize(
    "changes", [{"alpha": 16.0}, {"wears": "1" * 64}, {"targets": tuple(SHAPES)[:-1]}, {"rank": 8}], ids=lambda changes: next(iter(changes))
)
def test_another_meaning_for_the_same_tensors(tmp_path: Path, changes: dict[str, Any]) -> None:
    """The forger rewrites the manifest and its hash, not the digest."""
    ref = write_module(tmp_path / "module")
    described = canonical_json(json.loads((ref.directory / MANIFEST).read_bytes()) | changes)
    (ref.directory / MANIFEST).write_bytes(described)
    config = json.loads((ref.directory / CONFIG).read_bytes())
    now = parse_manifest(described)
    config |= {"r": now.rank, "lora_alpha": int(now.alpha), "target_modules": list(now.targets)}
    (ref.directory / CONFIG).write_bytes(canonical_json(config))
    refused(replace(ref, manifest_sha256=hashlib.sha256(described).hexdigest()), "")


@pytest.mark.parametrize(
    "data",
    [b"", b"{}", b"not json", b"[1]", b"[" * 100_000],
    ids=["empty", "object", "text", "list", "deep"],
)
def test_a_manifest_whose_hash_fits_but_says_nothing(tmp_path: Path, data: bytes) -> None:
    ref = write_module(tmp_path / "module")
    (ref.directory / MANIFEST).write_bytes(data)
    refused(replace(ref, manifest_sha256=hashlib.sha256(data).hexdigest()), "manifest")


CONFIGS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "another rank": lambda c: c | {"r": 8},
    "rank as text": lambda c: c | {"r": "4"},
    "rank true": lambda c: c | {"r": True},
    "another alpha": lambda c: c | {"lora_alpha": 16},
    "layer left out": lambda c: c | {"target_modules": c["target_modules"][:-1]},
    "layer added": lambda c: c | {"target_modules": [*c["target_modules"], "lm_head"]},
    "layer twice": lambda c: c | {"target_modules": [*c["target_modules"], LAYER]},
    "all layers": lambda c: c | {"target_modules": "all-linear"},
    "no layers": lambda c: c | {"target_modules": None},
    "layers by number": lambda c: c | {"target_modules": [1, "a"]},
    "rank-stabilised": lambda c: c | {"use_rslora": True},
    "DoRA": lambda c: c | {"use_dora": True},
    "rank pattern": lambda c: c | {"rank_pattern": {LAYER: 2}},
    "alpha pattern": lambda c: c | {"alpha_pattern": {LAYER: 32}},
    "biases": lambda c: c | {"bias": "all"},
    "whole modules": lambda c: c | {"modules_to_save": ["lm_head"]},
    "transposed weights": lambda c: c | {"fan_in_fan_out": True},
    "dropout": lambda c: c | {"lora_dropout": 0.5},
    "trainable": lambda c: c | {"inference_mode": False},
    "another method": lambda c: c | {"peft_type": "IA3"},
    "another task": lambda c: c | {"task_type": "SEQ_CLS"},
    "a key more": lambda c: c | {"layers_to_transform": [0]},
    "aLoRA": lambda c: c | {"alora_invocation_tokens": [1]},
    "code to load": lambda c: c | {"auto_mapping": {"base_model_class": "x"}},
    "base model unnamed": lambda c: c | {"base_model_name_or_path": None},
    "a key less": lambda c: {key: value for key, value in c.items() if key != "use_rslora"},
    "no name": lambda c: {key: value for key, value in c.items() if key != "base_model_name_or_path"},
    "nothing": lambda c: {},
    "list": lambda c: [c],
    "text": lambda c: "config",
}


@pytest.mark.parametrize("change", CONFIGS.values(), ids=CONFIGS)
def test_a_config_that_differs_from_the_manifest(tmp_path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    ref = write_module(tmp_path / "module")
    path = ref.directory / CONFIG
    path.write_bytes(json.dumps(change(json.loads(path.read_bytes()))).encode())
    refused(ref, "adapter config")


def test_the_order_and_spacing_of_a_config_are_free(tmp_path: Path) -> None:
    ref = write_module(tmp_path / "module")
    path = ref.directory / CONFIG
    config = json.loads(path.read_bytes())
    config["target_modules"].reverse()
    path.write_text(json.dumps(dict(reversed(config.items())), indent=2))
    assert read(ref).manifest == manifest()


def forged_composition(directory: Path, weights: Mapping[str, Tensor], metadata: dict[str, str] | None) -> ArtefactRef:
    """An extractor whose row fits its composition, whatever is in it."""
    ref = write_extractor(directory)
    (directory / COMPOSITION).write_bytes(safetensors.torch.save(dict(weights), metadata=metadata))
    if not {"w_km", "w_ke"} <= weights.keys() or metadata is None:
        return ref
    with_weights = Composition(layers=tuple(json.loads(metadata["layers"])), w_km=weights["w_km"], w_ke=weights["w_ke"])
    return replace(ref, composition=composition_digest(with_weights, ref.digest))


def _weights() -> dict[str, Tensor]:
    plain = composition()
    return {"w_km": plain.w_km, "w_ke": plain.w_ke}


def _layers(*names: str) -> dict[str, str]:
    return {"layers": json.dumps(names)}


NAMED = _layers(*SHAPES)
COMPOSITIONS: dict[str, tuple[dict[str, Tensor], dict[str, str] | None, str]] = {
    "w_km missing": ({"w_ke": torch.ones(4)}, NAMED, "w_km is missing"),
    "w_ke missing": ({"w_km": torch.ones(4)}, NAMED, "w_ke is missing"),
    "extra": (_weights() | {"w_x": torch.ones(4)}, NAMED, "w_x is unexpected"),
    "too short": ({"w_km": torch.ones(3), "w_ke": torch.ones(3)}, NAMED, "shape [3], not [4]"),
    "too long": ({"w_km": torch.ones(5), "w_ke": torch.ones(5)}, NAMED, "shape [5], not [4]"),
    "matrix": ({"w_km": torch.ones(4, 1), "w_ke": torch.ones(4, 1)}, NAMED, "shape [4, 1]"),
    "scalar": ({"w_km": torch.tensor(1.0), "w_ke": torch.tensor(1.0)}, NAMED, "shape []"),
    "NaN": (_weights() | {"w_km": torch.tensor([1, 1, 1, float("nan")])}, NAMED, "w_km is not finite"),
    "infinity": (_weights() | {"w_ke": torch.tensor([1, 1, 1, float("inf")])}, NAMED, "w_ke is not finite"),
    "float64": ({name: tensor.double() for name, tensor in _weights().items()}, NAMED, "dtype torch.float64"),
    "bfloat16": ({name: tensor.bfloat16() for name, tensor in _weights().items()}, NAMED, "not float32"),
    "no names": (_weights(), None, "names no layers"),
    "a name less": (_weights(), _layers(*list(SHAPES)[:-1]), "layers are not the manifest's"),
    "another order": (_weights(), _layers(*reversed(SHAPES)), "layers are not the manifest's"),
    "another layer": (_weights(), _layers(*list(SHAPES)[:-1], "lm_head"), "layers are not the manifest's"),
}


@pytest.mark.parametrize(("weights", "metadata", "reason"), COMPOSITIONS.values(), ids=COMPOSITIONS)
def test_a_composition_that_does_not_fit(tmp_path: Path, weights: dict[str, Tensor], metadata: dict[str, str] | None, reason: str) -> None:
    refused(forged_composition(tmp_path / "extractor", weights, metadata), reason)


@pytest.mark.parametrize("layers", ["{}", "1", "null", "[", '"text"', "[[1]]"])
def test_layer_names_that_are_no_list_of_names(tmp_path: Path, layers: str) -> None:
    ref = write_extractor(tmp_path / "extractor")
    (ref.directory / COMPOSITION).write_bytes(safetensors.torch.save(_weights(), metadata={"layers": layers}))
    refused(ref, "composition")


def test_an_unchanged_composition_forgery_is_read(tmp_path: Path) -> None:
    assert read(forged_composition(tmp_path / "extractor", _weights(), NAMED)).composition is not None


def test_a_composition_over_another_lora(tmp_path: Path) -> None:
    """Same weights, same layers: only the digest binds them to the lora."""
    ref = write_extractor(tmp_path / "extractor")
    refused(replace(ref, composition=composition_digest(composition(), OTHER)), "digest of the composition")


def test_a_module_with_a_composition(tmp_path: Path) -> None:
    ref, other = write_module(tmp_path / "module"), write_extractor(tmp_path / "extractor")
    (ref.directory / COMPOSITION).write_bytes((other.directory / COMPOSITION).read_bytes())
    refused(ref, "no composition")


def test_an_extractor_published_as_a_module(tmp_path: Path) -> None:
    a, b = lora()
    ref = write_artefact(tmp_path / "module", a=a, b=b, manifest=extractor_manifest(), base_model_name=BASE_NAME)
    refused(ref, "kind is knowledge_extractor, not knowledge_module")
