"""How often answers decline, as extractors are taught to: `python -m worker.evaluation.refusal --extractor DIR ... --rows KE,RAG+KE`.

Every document is asked its own questions, which have answers, and those of the following document, which have none in it. A good row
declines the latter and none of the former.
"""

from __future__ import annotations

from rich.console import Console

from worker.evaluation.arguments import ending_in_words, parse_arguments


def main() -> None:
    arguments = parse_arguments(prog="python -m worker.evaluation.refusal", description=__doc__ or "")
    with ending_in_words():
        from worker.evaluation.refusals import run  # torch takes seconds to import, and --help needs none

        run(arguments, Console(highlight=False))


if __name__ == "__main__":
    main()
