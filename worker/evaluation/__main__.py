"""`python -m worker.evaluation`: the paper's table; see docs/evaluation.md."""

from __future__ import annotations

import sys

from rich.console import Console

from server.errors import KmserveError
from worker.evaluation.arguments import parse_arguments


def main() -> None:
    arguments = parse_arguments()
    try:
        from worker.evaluation.run import run  # torch takes seconds to import, and --help needs none

        run(arguments, Console(highlight=False))
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        sys.exit(130)
    except (KmserveError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
