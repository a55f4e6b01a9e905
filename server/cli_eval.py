"""`kmserve eval`: the paper's table. The worker's evaluation does it, in a process of its own: the server never imports the worker."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from server.cli_stack import configured

EVALUATION = ("-m", "worker.evaluation")

_Folder = Annotated[Path, typer.Option("--data", help="The dataset's folder, or QuALITY's file.")]
_Out = Annotated[Path, typer.Option("--out", help="The folder that gets table and figure.")]
_Rows = Annotated[
    str | None, typer.Option("--rows", help="Names of rows with commas, or all.", show_default="base,KM_mixed,ICL,RAG,RAG+KM")
]
_Passages = Annotated[
    str | None, typer.Option("--passages", help="How many a prompt holds; a line for each number.", show_default="1,2,4,8,16")
]
_Kv = Annotated[float | None, typer.Option("--kv-drop", help="Share of keys and values that row KV_L2 drops.", show_default="0.5")]
_Trainers = Annotated[
    int | None, typer.Option("--trainers", min=1, help="Modules trained at once, each with its share of the cores.", show_default="1")
]
_Extractor = Annotated[
    str | None,
    typer.Option(
        "--extractor",
        metavar="DIR",
        help="A knowledge extractor's directory, for the rows with KE, or none.",
        show_default="the one that ships for the base, if any",
    ),
]
_Cache = Annotated[Path | None, typer.Option("--cache", help="What is kept between runs.", show_default="~/.cache/kmserve/evaluation")]


def evaluate(
    dataset: Annotated[str, typer.Option("--dataset", help="fairytaleqa, quality or narrativeqa.")],
    data: _Folder,
    out: _Out,
    split: Annotated[str | None, typer.Option("--split", help="Which part of the dataset.", show_default="its validation part")] = None,
    documents: Annotated[int | None, typer.Option("--documents", help="How many, the shortest first.", show_default="all")] = None,
    base: Annotated[
        str | None,
        typer.Option("--base", help="A directory, a .gguf file, or a hub id.", show_default="the configured base model"),
    ] = None,
    rows: _Rows = None,
    passages: _Passages = None,
    passage_tokens: Annotated[int | None, typer.Option("--passage-tokens", help="Longest passage.", show_default="256")] = None,
    extractor: _Extractor = None,
    worn: Annotated[
        Path | None, typer.Option("--worn", help="The extractor that worn modules wear in their training.", show_default="--extractor")
    ] = None,
    preset: Annotated[
        str | None, typer.Option("--preset", help="How much training: quick, standard or paper.", show_default="quick")
    ] = None,
    recipe: Annotated[str | None, typer.Option("--recipe", help="Fields of the recipe, as JSON.")] = None,
    trainers: _Trainers = None,
    kv_drop: _Kv = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Of trainings, intervals and tests.", show_default="0")] = None,
    cache: _Cache = None,
) -> None:
    """Fill in the paper's table on a dataset: what modules, extractors and passages are worth.

    Trains the modules that the rows need, asks every question and prints scores with intervals. --out is written anew with every row that
    is done, and the same command goes on where a run was stopped. docs/evaluation.md lists rows and measures.

    Example:

      kmserve eval --dataset fairytaleqa --data ./fairytaleqa --documents 4 --passage-tokens 64 --out ./table
    """
    settings, environ = configured(base_model=base)
    options = {
        "dataset": dataset,
        "data": data,
        "out": out,
        "split": split,
        "documents": documents,
        "base": settings.base_model,
        "models_dir": settings.root / "models",
        "device": settings.device,
        "dtype": settings.dtype,
        "embedder": settings.embedder,
        "rows": rows,
        "passages": passages,
        "passage_tokens": passage_tokens,
        "extractor": extractor,
        "worn": worn,
        "preset": preset,
        "recipe": recipe,
        "trainers": trainers,
        "kv_drop": kv_drop,
        "seed": seed,
        "cache": cache,
    }
    ended = subprocess.run([sys.executable, *EVALUATION, *arguments(options)], env=environ, check=False)
    raise typer.Exit(ended.returncode)


def arguments(options: dict[str, Any]) -> list[str]:
    """A command line of the given ones."""
    given = {name: value for name, value in options.items() if value is not None}
    return [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
