from __future__ import annotations

import hashlib
from typing import Any

import pytest
import torch

from server.modules.canonical import canonical_json
from server.modules.composition import Composition, ones
from server.modules.digest import composition_digest, lora_digest, tensor_bytes
from tests.support.artefacts import SHAPES, composition, lora, manifest

LAYER = next(iter(SHAPES))


def digest(**changes: Any) -> str:
    return lora_digest(*lora(), manifest(**changes))


def test_a_digest_depends_on_content_only() -> None:
    a, b = lora()
    shuffled = {layer: a[layer] for layer in reversed(a)}
    strided = {layer: tensor.T.contiguous().T for layer, tensor in b.items()}
    assert lora_digest(shuffled, strided, manifest(created="later", recipe={}, gate={})) == digest()
    assert digest(targets=tuple(reversed(SHAPES))) == digest()
    assert digest(alpha=8) == digest()


def test_the_digest_of_known_tensors_never_changes() -> None:
    a = {"layer": torch.arange(6, dtype=torch.float32).reshape(2, 3)}
    b = {"layer": torch.arange(4, dtype=torch.bfloat16).reshape(2, 2)}
    described = manifest(rank=2, targets=("layer",))
    assert lora_digest(a, b, described) == "b4a9b6478b81e2cc65ac078a38ad440009ca929ab601ed4742da84c733ea64d8"
    assert composition_digest(ones(["layer"]), "0" * 64) == "21e79cefd33beb203eb0eaa73617ef708424780181c196003466945c18573167"


def test_names_dtypes_shapes_and_bytes_are_digested_one_after_the_other() -> None:
    sizes = {"a": 3, "b": 300_000, "c": 7, "d": 100_000, "e": 100_000, "f": 1}
    a = {name: torch.randn(1, size, generator=torch.Generator().manual_seed(size)) for name, size in sizes.items()}
    described = manifest(rank=1, targets=tuple(sizes))
    meaning = {"r": 1, "alpha": 8.0, "targets": sorted(sizes), "scope": "all", "base_fingerprint": "f" * 64, "wears": None}
    expected = hashlib.sha256(canonical_json(meaning))
    for name, tensor in a.items():
        expected.update(canonical_json([f"base_model.model.{name}.lora_A.weight", "float32", list(tensor.shape)]))
        expected.update(tensor.numpy().tobytes())
    assert lora_digest(a, {}, described) == expected.hexdigest()


@pytest.mark.parametrize(
    "changes",
    [
        {"rank": 5},
        {"alpha": 9.0},
        {"targets": tuple(SHAPES)[:-1]},
        {"scope": "answer"},
        {"base_fingerprint": "0" * 64},
        {"wears": "1" * 64},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_the_tensors_mean_is_part_of_the_digest(changes: dict[str, Any]) -> None:
    assert digest(**changes) != digest()


def test_every_bit_name_shape_and_dtype_is_part_of_the_digest() -> None:
    digests = {digest()}
    a, b = lora()
    a[LAYER][0, 0] = torch.nextafter(a[LAYER][0, 0], torch.tensor(9.0))
    digests.add(lora_digest(a, b, manifest()))
    a, b = lora()
    digests.add(lora_digest({f"{layer}x": tensor for layer, tensor in a.items()}, b, manifest()))
    digests.add(lora_digest({layer: tensor.T for layer, tensor in a.items()}, b, manifest()))
    digests.add(lora_digest({layer: tensor.reshape(-1) for layer, tensor in a.items()}, b, manifest()))
    digests.add(lora_digest({layer: tensor.bfloat16() for layer, tensor in a.items()}, b, manifest()))
    digests.add(lora_digest({layer: tensor.view(torch.int32) for layer, tensor in a.items()}, b, manifest()))
    digests.add(lora_digest(b, a, manifest()))
    assert len(digests) == 8


def test_minus_zero_is_not_zero() -> None:
    assert bytes(tensor_bytes(torch.tensor([-0.0]))) != bytes(tensor_bytes(torch.tensor([0.0])))


def test_a_composition_is_of_its_lora_layers_and_weights() -> None:
    plain = composition()
    swapped = Composition(layers=plain.layers, w_km=plain.w_ke, w_ke=plain.w_km)
    renamed = Composition(layers=tuple(f"{layer}x" for layer in plain.layers), w_km=plain.w_km, w_ke=plain.w_ke)
    digests = {composition_digest(each, "0" * 64) for each in (plain, swapped, renamed, composition(seed=1), ones(plain.layers))}
    assert len(digests | {composition_digest(plain, "1" * 64)}) == 6
    doubled = Composition(layers=plain.layers, w_km=plain.w_km.double(), w_ke=plain.w_ke.double())
    assert composition_digest(doubled, "0" * 64) == composition_digest(plain, "0" * 64)
