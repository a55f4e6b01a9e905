"""The manifest: what a published artefact says about itself. Knows nothing of files; `artefact.py` reads and writes them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

SCHEMA_VERSION = 1


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
    schema_version: int = SCHEMA_VERSION
