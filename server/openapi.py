"""Prints the OpenAPI document; docs/openapi.json is this output, and the checks compare the two.

python -m server.openapi > docs/openapi.json
"""

from __future__ import annotations

import json
from typing import Any

from server.app import create_app
from server.settings import Settings


def document() -> dict[str, Any]:
    return create_app(Settings()).openapi()


def text() -> str:
    """The document, the same on every machine."""
    return json.dumps(document(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    print(text(), end="")
