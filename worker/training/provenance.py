"""What every manifest says of when and with what its artefact was made."""

from __future__ import annotations

from datetime import UTC, datetime
from importlib.metadata import version

LIBRARIES = ("torch", "transformers", "safetensors")


def library_versions() -> dict[str, str]:
    return {name: version(name) for name in LIBRARIES}


def now() -> str:
    """RFC 3339, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")
