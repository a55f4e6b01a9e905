"""The command line of an extractor's training on a dataset. Imports no library of models: `--help` answers at once."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from server.engine.base_source import DEFAULT_BASE
from worker.evaluation.arguments import add_trainers, default_cache, json_object, positive
from worker.evaluation.datasets import DATASETS
from worker.training.recipe import ObjectiveName

DESCRIPTION = """Train a knowledge extractor on a dataset's questions.

Without --modules it learns from passages alone: a reader, to be trained on over modules or for modules to wear. With them it
learns over the documents' knowledge modules, which are trained on demand and kept under the cache directory. --start begins from
another extractor, whose rank, alpha and scope the new one has; over modules that wear it, name it and say --recipe
'{"learn": "weights"}'.
"""
NONE, WORN = "none", "worn"
MOST_DOCUMENTS = 16
_WIDE = argparse.RawDescriptionHelpFormatter


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m worker.extractor", description=DESCRIPTION, formatter_class=_WIDE)
    data = parser.add_argument_group("documents")
    data.add_argument("--dataset", choices=list(DATASETS), required=True)
    data.add_argument("--data", type=Path, required=True, help="the dataset's folder, or QuALITY's file")
    data.add_argument("--split", default="train", help="(default: train)")
    data.add_argument(
        "--documents", type=positive, help=f"how many, those with the most questions (default: {MOST_DOCUMENTS}, or as many as there are)"
    )
    data.add_argument("--most-tokens", type=positive, default=1500, help="longest document, in base tokens (default: 1500)")
    data.add_argument(
        "--passage-tokens", type=positive, default=64, help="longest passage (default: 64, as the evaluation of short stories wants)"
    )
    model = parser.add_argument_group("model and training")
    model.add_argument("--base", default=DEFAULT_BASE, help="a directory, a .gguf file or a hub id (default: %(default)s)")
    model.add_argument("--models-dir", type=Path, help="where a base model is converted to (default: models/ of the cache)")
    model.add_argument("--device", default="auto")
    model.add_argument("--dtype", default="auto")
    model.add_argument("--embedder", help="the embedding model of retrieval (default: the packaged one)")
    model.add_argument(
        "--modules",
        choices=(NONE, *get_args(ObjectiveName), WORN),
        default=NONE,
        help=f"an objective, or {WORN}: mixed, wearing --start (default: {NONE})",
    )
    model.add_argument("--start", type=Path, help="the directory of an extractor to begin from (default: nothing)")
    model.add_argument("--recipe", type=json_object, default={}, metavar="JSON", help="fields of the extractor's recipe")
    model.add_argument("--preset", default="quick", help="of the modules: quick, standard or paper (default: quick)")
    model.add_argument("--module-recipe", type=json_object, default={}, metavar="JSON", help="fields of the modules' recipe")
    add_trainers(model)
    model.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="the folder that gets the artefact, and the checkpoints on the way")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="what is kept between runs (default: %(default)s)")
    arguments = parser.parse_args(argv)
    if arguments.documents == 1:
        parser.error("--documents must be at least 2: one is held out")
    if arguments.modules == WORN and arguments.start is None:
        parser.error("--modules worn needs --start: the extractor that they wear")
    return arguments
