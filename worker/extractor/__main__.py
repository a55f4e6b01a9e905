"""`python -m worker.extractor`: see --help."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console

from server.errors import KmserveError
from worker.extractor.arguments import parse_arguments


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    try:
        from worker.extractor.run import run  # seconds to import, and --help needs none of it

        run(arguments, Console())
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    except (ValueError, KmserveError) as error:
        print(f"error: {error.detail if isinstance(error, KmserveError) else error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
