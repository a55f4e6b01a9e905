"""`python -m worker.evaluation`: the paper's table; see docs/evaluation.md."""

from __future__ import annotations

from rich.console import Console

from worker.evaluation.arguments import ending_in_words, parse_arguments


def main() -> None:
    arguments = parse_arguments()
    with ending_in_words():
        from worker.evaluation.run import run  # torch takes seconds to import, and --help needs none

        run(arguments, Console(highlight=False))


if __name__ == "__main__":
    main()
