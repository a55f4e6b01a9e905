"""`python -m worker.extractor`: see --help."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from worker.evaluation.arguments import ending_in_words
from worker.extractor.arguments import parse_arguments


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    with ending_in_words():
        from worker.extractor.run import run  # seconds to import, and --help needs none of it

        run(arguments, Console())


if __name__ == "__main__":
    main()
