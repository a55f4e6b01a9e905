"""The modules of a run: random LoRAs as artefacts on disk, the same bytes for every system, and their folded exports.

Few of them are different; more are hard links of those in directories of their own, which are other modules for everybody who reads
them. Knows nothing of systems.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from server.engine.base_model import BaseModel, adapted_layers
from server.engine.request import ArtefactRef, Scope
from server.modules.artefact import Artefact, read_artefact, write_artefact
from server.modules.composition import Composition
from server.modules.export import export_folded
from server.modules.manifest import ArtefactKind, Manifest

Lora = tuple[dict[str, Tensor], dict[str, Tensor]]
"""A and B by layer."""
RANK = 16
DISTINCT = 16
_UP = 2e-3
"""The spread of B: the answers differ from the base model's and stay text."""
_EXTRACTOR_SEED = 10_000


@dataclass(frozen=True, kw_only=True)
class Shelf:
    """`modules[i]` is module number i of every system; `folded[scenario][i]` its directory for PEFT and vLLM."""

    modules: Sequence[ArtefactRef]
    extractor: ArtefactRef
    folded: Mapping[str, Sequence[Path]]


def shapes_of(base: BaseModel) -> dict[str, tuple[int, int]]:
    """layer -> (out, in)"""
    return {name: (linear.out_features, linear.in_features) for name, linear in adapted_layers(base.model).items()}


def make_shelf(base: BaseModel, directory: Path, count: int, *, folded: int = 0, rank: int = RANK) -> Shelf:
    """`count` modules and an extractor below `directory`; the first `folded` of them also as plain LoRAs in the base's dtype."""
    modules = make_modules(base, directory / "modules", count, rank=rank)
    extractor = write_extractor(base, directory / "extractor", rank=rank)
    km_ke = _read(base, extractor)
    made: dict[str, list[Path]] = {"km": [], "km+ke": []}
    for number, ref in enumerate(modules[:folded]):
        km = _read(base, ref)
        for scenario, ke in (("km", None), ("km+ke", km_ke)):
            target = directory / "folded" / f"{scenario}-{number}"
            export_folded(km, ke, ke.composition if ke else None, target, str(directory), base.dtype)
            made[scenario].append(target)
    return Shelf(modules=modules, extractor=extractor, folded=made)


def make_modules(
    base: BaseModel, directory: Path, count: int, *, rank: int = RANK, scope: Scope = Scope.ALL, distinct: int = DISTINCT
) -> list[ArtefactRef]:
    """Bfloat16 artefacts; those beyond the first `distinct` are hard links."""
    written = [write_module(base, directory / f"{number:05d}", number, rank=rank, scope=scope) for number in range(min(count, distinct))]
    return written + [_linked(written[number % distinct], directory / f"{number:05d}") for number in range(len(written), count)]


def write_module(
    base: BaseModel, directory: Path, seed: int, *, rank: int = RANK, scope: Scope = Scope.ALL, lora: Lora | None = None
) -> ArtefactRef:
    """`lora` where it has been drawn before."""
    a, b = lora or random_lora(shapes_of(base), rank, seed)
    manifest = _manifest(base, ArtefactKind.KNOWLEDGE_MODULE, tuple(a), rank, scope, seed)
    return write_artefact(directory, a=a, b=b, manifest=manifest, base_model_name=base.name)


def write_extractor(base: BaseModel, directory: Path, *, rank: int = RANK, scope: Scope = Scope.ALL) -> ArtefactRef:
    """With weights of both sides that differ from layer to layer."""
    a, b = random_lora(shapes_of(base), rank, _EXTRACTOR_SEED)
    weights = 0.5 + torch.rand(2, len(a), generator=torch.Generator().manual_seed(_EXTRACTOR_SEED))
    composition = Composition(layers=tuple(sorted(a)), w_km=weights[0], w_ke=weights[1])
    manifest = _manifest(base, ArtefactKind.KNOWLEDGE_EXTRACTOR, tuple(a), rank, scope, _EXTRACTOR_SEED)
    return write_artefact(directory, a=a, b=b, manifest=manifest, base_model_name=base.name, composition=composition)


def adapter_bytes(base: BaseModel, rank: int = RANK, itemsize: int | None = None) -> int:
    """What one adapter on every layer takes in the base's dtype."""
    return sum(map(sum, shapes_of(base).values())) * rank * (itemsize or base.dtype.itemsize)


def random_lora(shapes: Mapping[str, tuple[int, int]], rank: int, seed: int) -> Lora:
    source = torch.Generator().manual_seed(seed)
    a: dict[str, Tensor] = {}
    b: dict[str, Tensor] = {}
    for layer, (fan_out, fan_in) in sorted(shapes.items()):
        a[layer] = (torch.randn(rank, fan_in, generator=source) * fan_in**-0.5).bfloat16()
        b[layer] = (torch.randn(fan_out, rank, generator=source) * _UP).bfloat16()
    return a, b


def _manifest(base: BaseModel, kind: ArtefactKind, targets: tuple[str, ...], rank: int, scope: Scope, seed: int) -> Manifest:
    return Manifest(
        kind=kind,
        base_fingerprint=base.fingerprint,
        rank=rank,
        alpha=float(2 * rank),
        targets=tuple(sorted(targets)),
        scope=scope,
        wears=None,
        document_revision=None if kind is ArtefactKind.KNOWLEDGE_EXTRACTOR else f"{seed:064x}",
        objective="random",
        recipe={"benchmark": "serving"},
        data={},
        seed=seed,
        held_out_loss_before=0.0,
        held_out_loss_after=0.0,
        gate={"passed": True},
        versions={"torch": torch.__version__},
        created="2026-01-01T00:00:00Z",
    )


def _read(base: BaseModel, ref: ArtefactRef) -> Artefact:
    shapes = shapes_of(base)
    return read_artefact(ref, base.fingerprint, shapes, max(map(max, shapes.values())))


def _linked(original: ArtefactRef, directory: Path) -> ArtefactRef:
    directory.mkdir(parents=True)
    for file in original.directory.iterdir():
        os.link(file, directory / file.name)
    return ArtefactRef(digest=original.digest, manifest_sha256=original.manifest_sha256, directory=directory, scope=original.scope)
