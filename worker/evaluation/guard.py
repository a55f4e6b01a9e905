"""How far a module bends answers that have nothing to do with its document: `python -m worker.evaluation.guard --module DIR`.

The measure is the mean over tokens of KL(base || base + module) in nats, on the base's own answers to the reserved general questions,
which no module is trained on. 0 is a module that leaves them as they are. --json gets the same with each question's, and what module it is.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from server.engine.base_source import DEFAULT_BASE
from worker.evaluation.arguments import default_cache, ending_in_words


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m worker.evaluation.guard", description=__doc__)
    parser.add_argument("--module", type=Path, required=True, help="a knowledge module's directory")
    parser.add_argument("--base", default=DEFAULT_BASE, help="a directory, a .gguf file or a hub id (default: %(default)s)")
    parser.add_argument("--models-dir", type=Path, help="where a base model is converted to (default: models/ of the cache)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default: auto)")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16, ... (default: auto)")
    parser.add_argument("--json", type=Path, metavar="OUT", help="a file for the figures, with the module's digest and recipe")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="what is kept between runs (default: %(default)s)")
    return parser.parse_args(argv)


def main() -> None:
    arguments = parse_arguments()
    with ending_in_words():
        from worker.evaluation.guard_measure import run  # torch takes seconds to import, and --help needs none

        run(arguments, Console(highlight=False))


if __name__ == "__main__":
    main()
