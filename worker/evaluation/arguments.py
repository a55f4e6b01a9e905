"""The command line of the evaluation. Imports no library of models: `--help` answers at once."""

from __future__ import annotations

import argparse
import json
import os
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from server.engine.base_source import DEFAULT_BASE
from server.errors import KmserveError
from worker.evaluation.datasets import DATASETS
from worker.evaluation.rows import ALL, ROWS

DESCRIPTION = f"""The paper's table on a dataset: closed book, open book, each row by name.

{textwrap.fill(f"Rows: {', '.join(ROWS)}; {ALL} for all.", 100)}

Modules are trained on demand. They, the answers and the scores are kept under the cache directory,
so a run that was stopped goes on where it was. --out gets table.json, table.csv, table.md,
questions.jsonl and figure1.png, written anew with every row that is done.
"""
NONE = "none"
"""In the place of an extractor's directory."""
DEFAULT_ROWS = "base,KM_mixed,ICL,RAG,RAG+KM"
DEFAULT_PASSAGES = "1,2,4,8,16"
_WIDE = argparse.RawDescriptionHelpFormatter


def parse_arguments(
    argv: Sequence[str] | None = None, *, prog: str = "python -m worker.evaluation", description: str = DESCRIPTION
) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=prog, description=description, formatter_class=_WIDE)
    _add_data(parser)
    _add_model(parser)
    _add_table(parser)
    arguments = parser.parse_args(argv)
    if not 0 <= arguments.kv_drop < 1:
        parser.error("--kv-drop must be at least 0 and below 1")
    return arguments


def _add_data(parser: argparse.ArgumentParser) -> None:
    splits = "; ".join(f"{name}: {', '.join(dataset.splits)}" for name, dataset in DATASETS.items())
    parser.add_argument("--dataset", choices=list(DATASETS), required=True)
    parser.add_argument("--data", type=Path, required=True, help="the dataset's folder, or QuALITY's file")
    parser.add_argument("--split", help=f"default: the first of its splits ({splits})")
    parser.add_argument("--documents", type=positive, help="how many, the shortest first (default: all)")


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--base", default=DEFAULT_BASE, help="a directory, a .gguf file or a hub id (default: %(default)s)")
    parser.add_argument("--models-dir", type=Path, help="where a base model is converted to (default: models/ of the cache)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default: auto)")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16, ... (default: auto)")
    parser.add_argument("--embedder", help="the embedding model of retrieval (default: the packaged one)")
    parser.add_argument(
        "--extractor",
        type=_directory_or_none,
        metavar="DIR",
        help=f"a knowledge extractor's directory, for the rows with KE, or {NONE} (default: the one that ships for the base, if any)",
    )
    parser.add_argument("--worn", type=Path, help="the extractor that worn modules wear while they are distilled (default: --extractor)")
    parser.add_argument("--preset", default="quick", help="how much training: quick, standard or paper (default: quick)")
    parser.add_argument(
        "--recipe",
        type=json_object,
        default={},
        metavar="JSON",
        help="""fields of the recipe, and under an objective's name those of its modules: {"summaries": 8, "lm": {"batch_size": 2}}""",
    )
    add_trainers(parser)
    parser.add_argument("--seed", type=int, default=0, help="of trainings, intervals and tests (default: 0)")


def add_trainers(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--trainers", type=positive, default=1, metavar="N", help="modules trained at once, each with its share of the cores (default: 1)"
    )


def _directory_or_none(text: str) -> Path | str:
    return NONE if text == NONE else Path(text)


def positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return int(text)


def _add_table(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--rows",
        type=_names,
        default=_names(DEFAULT_ROWS),
        help=f"names with commas, RAG@1:2 for passages of its own (default: {DEFAULT_ROWS})",
    )
    parser.add_argument(
        "--passages",
        type=_numbers,
        default=_numbers(DEFAULT_PASSAGES),
        help=f"how many a prompt holds; a line of the table for each (default: {DEFAULT_PASSAGES})",
    )
    parser.add_argument("--passage-tokens", type=positive, default=256, help="longest passage (default: 256; short stories want 64)")
    parser.add_argument("--kv-drop", type=float, default=0.5, help="share of keys and values that KV_L2 drops (default: 0.5)")
    parser.add_argument("--out", type=Path, required=True, help="the folder that gets table and figure")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="what is kept between runs (default: %(default)s)")


def default_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "kmserve" / "evaluation"


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _numbers(text: str) -> list[int]:
    try:
        numbers = [int(name) for name in _names(text)]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers from 1 on, as 1,2,4")
    return numbers


def json_object(text: str) -> dict[str, Any]:
    try:
        fields = json.loads(text)
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON object")
    return fields


@contextmanager
def ending_in_words() -> Iterator[None]:
    """Around a command: what the user can mend, a full disk among it, ends it with 1 and a line that says so, Ctrl-C with 130."""
    try:
        yield
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        sys.exit(130)
    except (KmserveError, ValueError) as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: {error.filename or 'a file'}: {error.strerror or error}")
