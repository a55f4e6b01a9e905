"""The manifest: what a published artefact says about itself. Knows nothing of files; `artefact.py` reads and writes them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Any

from server.engine.request import Scope
from server.modules.canonical import canonical_json

SCHEMA_VERSION = 1
DIGEST = re.compile(r"[0-9a-f]{64}")


class Unsupported(ValueError):
    """What is said is well said, but more than this release or these settings can serve: no sign of damage."""


class ArtefactKind(StrEnum):
    KNOWLEDGE_MODULE = "knowledge_module"
    KNOWLEDGE_EXTRACTOR = "knowledge_extractor"


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """`base_fingerprint`, `scope`, `wears`, `rank`, `alpha` and `targets` enter the digest together with the tensors."""

    kind: ArtefactKind
    base_fingerprint: str
    rank: int
    alpha: float
    targets: tuple[str, ...]
    """Full names of the adapted linear layers as in the causal LM, e.g. `model.layers.0.self_attn.q_proj`, sorted."""
    scope: str
    wears: str | None
    document_revision: str | None
    """sha256 of the revision's bytes; None for an extractor."""
    objective: str
    recipe: dict[str, Any]
    data: dict[str, int]
    seed: int
    held_out_loss_before: float
    held_out_loss_after: float
    gate: dict[str, Any]
    versions: dict[str, str]
    created: str
    """RFC 3339, UTC."""
    start: dict[str, str] | None = None
    """Digests, `lora` and `composition`, of the extractor that this one's training began from. Without one the file has no such member."""
    schema_version: int = SCHEMA_VERSION


_NUMBERS = ("alpha", "held_out_loss_before", "held_out_loss_after")
_START = ("lora", "composition")
_TYPES: Mapping[str, type | tuple[type, ...]] = {
    "kind": str,
    "base_fingerprint": str,
    "rank": int,
    "alpha": float,
    "targets": list,
    "scope": str,
    "wears": (str, type(None)),
    "document_revision": (str, type(None)),
    "objective": str,
    "recipe": dict,
    "data": dict,
    "seed": int,
    "held_out_loss_before": float,
    "held_out_loss_after": float,
    "gate": dict,
    "versions": dict,
    "created": str,
    "start": dict,
    "schema_version": int,
}


def manifest_bytes(manifest: Manifest) -> bytes:
    """The manifest's one spelling; the database keeps its sha256. ValueError for numbers that are not finite."""
    values = asdict(manifest) | {name: float(getattr(manifest, name)) for name in _NUMBERS}
    if manifest.start is None:
        del values["start"]
    return canonical_json(values)


def parse_manifest(data: bytes | bytearray) -> Manifest:
    """Read a manifest of this schema version. ValueError says what is wrong with it, Unsupported that it has another version."""
    try:
        values = json.loads(data)
    except (ValueError, RecursionError):
        raise ValueError("the manifest is not JSON") from None
    if not isinstance(values, dict):
        raise ValueError("the manifest is not an object")
    version = values.get("schema_version")
    if type(version) is int and version != SCHEMA_VERSION:
        raise Unsupported(f"its schema version is {version} and this release reads {SCHEMA_VERSION}; run the release that wrote it")
    _check_types(values)
    _check_values(values)
    manifest = Manifest(**values | {"kind": ArtefactKind(values["kind"]), "targets": tuple(values["targets"])})
    if manifest_bytes(manifest) != data:
        raise ValueError("the manifest is not written canonically")
    return manifest


def _check_types(values: Mapping[str, Any]) -> None:
    names = {field.name for field in fields(Manifest)} - ({"start"} - values.keys())
    if values.keys() != names:
        raise ValueError(f"the manifest lacks or adds {sorted(values.keys() ^ names)}")
    for name, expected in _TYPES.items():
        if name in values and (isinstance(values[name], bool) or not isinstance(values[name], expected)):
            raise ValueError(f"the manifest's {name} has the wrong type")
    if not all(isinstance(layer, str) and layer for layer in values["targets"]):
        raise ValueError("the manifest's targets are not layer names")


def _check_values(values: Mapping[str, Any]) -> None:
    targets = values["targets"]
    checks = {
        "kind": values["kind"] in list(ArtefactKind),
        "base_fingerprint": DIGEST.fullmatch(values["base_fingerprint"]),
        "rank": values["rank"] >= 1,
        "alpha": math.isfinite(values["alpha"]) and values["alpha"] > 0,
        "targets": targets and targets == sorted(set(targets)),
        "scope": values["scope"] in list(Scope),
        "wears": values["wears"] is None or DIGEST.fullmatch(values["wears"]),
        "start": "start" not in values or _names_an_extractor(values["start"], values["kind"]),
    }
    for name, good in checks.items():
        if not good:
            raise ValueError(f"the manifest's {name} has no valid value")


def _names_an_extractor(start: Mapping[str, Any], kind: str) -> bool:
    digests = all(isinstance(digest, str) and DIGEST.fullmatch(digest) for digest in start.values())
    return kind == ArtefactKind.KNOWLEDGE_EXTRACTOR and start.keys() == set(_START) and digests
