"""The real small base model, converted once for all test runs of a user."""

from __future__ import annotations

import os
from pathlib import Path

from server.engine.base_model import DEFAULT_BASE, PreparedBase, prepare_base


def smollm2() -> PreparedBase:
    """SmolLM2-135M-Instruct from the cache directory; the first caller converts it (about half a minute), others wait for it."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return prepare_base(DEFAULT_BASE, cache / "kmserve" / "test-models")
