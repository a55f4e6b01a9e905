"""The extractor that ships with kmserve for a base model, found as the server finds the one that it installs (server.extractors.shipped).

Its files lie in a package of routes, which the worker does not import.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Final

from server.modules.artefact import MANIFEST
from server.modules.manifest import parse_manifest

SHIPPED: Final = Path(str(files("server"))) / "extractors" / "artefacts"
"""A directory for each."""


def shipped_extractor(base_fingerprint: str, shipped: Path = SHIPPED) -> Path | None:
    """The directory of the one whose manifest names this base; None where there is none."""
    for manifest in sorted(shipped.glob(f"*/{MANIFEST}")):
        if parse_manifest(manifest.read_bytes()).base_fingerprint == base_fingerprint:
            return manifest.parent
    return None
