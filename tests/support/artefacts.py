"""Small artefacts as files, and what an engine would expect of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from server.engine.request import ArtefactRef, Scope
from server.errors import ModuleCorrupt
from server.modules.artefact import Artefact, read_artefact, write_artefact
from server.modules.composition import Composition
from server.modules.manifest import ArtefactKind, Manifest

FINGERPRINT = "f" * 64
OTHER = "0" * 64
RANK = 4
MAX_RANK = 8
SHAPES = {
    "model.layers.0.mlp.down_proj": (6, 10),
    "model.layers.0.self_attn.q_proj": (6, 6),
    "model.layers.1.mlp.down_proj": (6, 10),
    "model.layers.1.self_attn.q_proj": (6, 6),
}
BASE_NAME = "tiny-base"
ADAPTER, CONFIG, MANIFEST, COMPOSITION = "adapter_model.safetensors", "adapter_config.json", "manifest.json", "composition.safetensors"
FILES = [ADAPTER, CONFIG, MANIFEST, COMPOSITION]

Tensors = dict[str, Tensor]


def lora(shapes: dict[str, tuple[int, int]] = SHAPES, rank: int = RANK, seed: int = 0) -> tuple[Tensors, Tensors]:
    """Random A [r, in] and B [out, r], float32."""
    source = torch.Generator().manual_seed(seed)
    a = {layer: torch.randn(rank, inner, generator=source) for layer, (_, inner) in shapes.items()}
    b = {layer: torch.randn(outer, rank, generator=source) for layer, (outer, _) in shapes.items()}
    return a, b


def manifest(**changes: Any) -> Manifest:
    plain = Manifest(
        kind=ArtefactKind.KNOWLEDGE_MODULE,
        base_fingerprint=FINGERPRINT,
        rank=RANK,
        alpha=8.0,
        targets=tuple(SHAPES),
        scope=Scope.ALL,
        wears=None,
        document_revision="a" * 64,
        objective="sdcd",
        recipe={"preset": "quick", "rates": [1e-3]},
        data={"summaries": 3, "pairs": 4},
        seed=7,
        held_out_loss_before=2.5,
        held_out_loss_after=1.0,
        gate={"passed": True},
        versions={"torch": "2.13.0"},
        created="2026-01-01T00:00:00Z",
    )
    return replace(plain, **changes)


def extractor_manifest(**changes: Any) -> Manifest:
    return manifest(**{"kind": ArtefactKind.KNOWLEDGE_EXTRACTOR, "document_revision": None, "objective": "reader", **changes})


def composition(layers: tuple[str, ...] = tuple(SHAPES), seed: int = 0) -> Composition:
    weights = torch.rand(2, len(layers), generator=torch.Generator().manual_seed(seed)) + 0.5
    return Composition(layers=layers, w_km=weights[0], w_ke=weights[1])


def write_module(directory: Path, seed: int = 0, **changes: Any) -> ArtefactRef:
    a, b = lora(seed=seed)
    return write_artefact(directory, a=a, b=b, manifest=manifest(**changes), base_model_name=BASE_NAME)


def write_extractor(directory: Path, seed: int = 0, **changes: Any) -> ArtefactRef:
    a, b = lora(seed=seed)
    described = extractor_manifest(**changes)
    return write_artefact(directory, a=a, b=b, manifest=described, base_model_name=BASE_NAME, composition=composition(seed=seed))


def read(ref: ArtefactRef, **changes: Any) -> Artefact:
    expected: dict[str, Any] = {"base_fingerprint": FINGERPRINT, "shapes": SHAPES, "max_rank": MAX_RANK}
    return read_artefact(ref, **{**expected, **changes})


def refused(ref: ArtefactRef, reason: str, **expected: Any) -> None:
    with pytest.raises(ModuleCorrupt, match="train the document again") as caught:
        read(ref, **expected)
    assert type(caught.value) is ModuleCorrupt
    assert reason in caught.value.reason
    assert str(ref.directory) not in caught.value.detail
