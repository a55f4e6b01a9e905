"""Write or check openapi.json, the API's description as committed.

    python -m scripts.openapi            rewrite it from the code
    python -m scripts.openapi --check    fail if the code says something else

Nothing is started: the description is made from the routes alone, with default settings whatever the environment holds.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from server.app import create_app
from server.settings import Settings

FILE = Path(__file__).resolve().parent.parent / "openapi.json"


def main() -> int:
    parser = argparse.ArgumentParser(description="Write or check openapi.json.")
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    wanted = render()
    if not check:
        FILE.write_text(wanted, encoding="utf-8")
        return 0
    if FILE.exists() and FILE.read_text(encoding="utf-8") == wanted:
        return 0
    print("openapi.json is not what the code says: run `make openapi`", file=sys.stderr)
    return 1


def render() -> str:
    return json.dumps(create_app(Settings.model_construct()).openapi(), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.exit(main())
