"""Where the extractors lie that ship with kmserve, and which are for a base model. The server installs them, an evaluation wears one."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from server.modules.artefact import MANIFEST
from server.modules.manifest import parse_manifest

SHIPPED: Final = Path(__file__).parents[1] / "extractors" / "artefacts"
"""A directory for each, with its model card."""


def shipped_for(base_fingerprint: str, shipped: Path = SHIPPED) -> list[Path]:
    """Directories of those whose manifest names this base. Raises ValueError for a manifest that is none."""
    manifests = sorted(shipped.glob(f"*/{MANIFEST}"))
    return [each.parent for each in manifests if parse_manifest(each.read_bytes()).base_fingerprint == base_fingerprint]
