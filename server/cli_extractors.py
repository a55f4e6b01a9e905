"""`kmserve extractors list | train | activate | deactivate | delete`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from kmserve_client.extractors import Start
from kmserve_client.models import Extractor, Job, Switched
from rich.markup import escape
from rich.table import Column, Table

from server.cli_connection import CliError, Connection, Key, Url, console, errors
from server.cli_documents import PIPED_WIDTH
from server.cli_progress import JobBars

app = typer.Typer(help="Knowledge extractors.", no_args_is_help=True, rich_markup_mode="rich")

Id = Annotated[str, typer.Argument(metavar="EXTRACTOR", help="Its id.")]


@app.callback()
def extractors() -> None:
    """What answers are worded and found with: LoRAs trained on questions about many documents."""


@app.command("list")
def list_(url: Url = None, api_key: Key = None) -> None:
    """Show your extractors, the system's, and what is being trained.

    Example:

      kmserve extractors list
    """
    with Connection.of(url, api_key).client() as client:
        found = client.extractors()
    if not found.items and not found.jobs:
        console.print("no extractors yet: `kmserve extractors train QUESTIONS` makes one")
        return
    table = Table(Column("id", no_wrap=True), "name", "owner", "active", "worn by", box=None, pad_edge=False)
    for each in found.items:
        table.add_row(*(escape(cell) for cell in _row(each)))
    if found.items:
        console.print(table, width=None if console.is_terminal else PIPED_WIDTH)
    for job in found.jobs:
        stage = f", {job.stage}" if job.stage else ""
        console.print(f"{job.id} is {job.state}{escape(stage)}")


@app.command()
def train(
    questions: Annotated[
        Path,
        typer.Argument(
            exists=True, dir_okay=False, readable=True, metavar="QUESTIONS", help="JSON lines with document_id, question, answer."
        ),
    ],
    name: Annotated[str | None, typer.Option(help="What to call it.")] = None,
    owner: Annotated[str | None, typer.Option(help="`system`: for all tenants (the operator's key).", show_default="your tenant")] = None,
    document: Annotated[
        list[str] | None, typer.Option("--document", "-d", help="Leave out the questions about all others. Repeat it.")
    ] = None,
    recipe: Annotated[list[str] | None, typer.Option("--recipe", metavar="NAME=VALUE", help="A number of the training. Repeat it.")] = None,
    start: Annotated[
        Start | None,
        typer.Option(help="What training begins from: the extractor that answers now, or nothing.", show_default="active, if it fits"),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of the training.", show_default="0")] = None,
    activate: Annotated[bool, typer.Option("--activate", help="Let it answer once it is there, if none is active yet.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Show a progress bar until it is there.")] = False,
    url: Url = None,
    api_key: Key = None,
) -> None:
    """Train an extractor on questions about your documents, one JSON object a line.

    Examples:

      kmserve extractors train questions.jsonl --name "Short answers" --wait

      kmserve extractors train questions.jsonl --recipe max_steps=400 --activate

      kmserve extractors train questions.jsonl --start nothing
    """
    told = {"name": name, "owner": owner, "documents": document, "recipe": _recipe(recipe or ()), "start": start, "seed": seed}
    connection = Connection.of(url, api_key)
    options = {key: value for key, value in told.items() if value is not None}
    job = asyncio.run(_train(connection, questions, wait, {**options, "activate": activate}))
    if not wait:
        console.print(f"{job.id} is {job.state}; `kmserve extractors list` shows how far it is")
        return
    if job.state != "succeeded" or job.extractor_id is None:
        errors.print(f"[bold red]{job.state}:[/] {escape(f'{job.error.message} [{job.error.code}]' if job.error else job.id)}")
        raise typer.Exit(1)
    with connection.client() as client:
        made = client.extractor(job.extractor_id)
    hint = "it is active" if made.active else f"`kmserve extractors activate {made.id}` lets it answer"
    console.print(f"{made.id} is trained: {hint}")


@app.command()
def activate(extractor: Id, url: Url = None, api_key: Key = None) -> None:
    """Let an extractor answer from the next question on, in place of the active one.

    Example:

      kmserve extractors activate ext_9d8e7f6a5b4c0f8b7a6c5d4e3f2a1b0c
    """
    with Connection.of(url, api_key).client() as client:
        switched = client.activate_extractor(extractor)
    console.print(f"{switched.id} is active{_retraining(switched)}")


@app.command()
def deactivate(extractor: Id, url: Url = None, api_key: Key = None) -> None:
    """Let no extractor of its owner be active.

    Example:

      kmserve extractors deactivate ext_9d8e7f6a5b4c0f8b7a6c5d4e3f2a1b0c
    """
    with Connection.of(url, api_key).client() as client:
        switched = client.deactivate_extractor(extractor)
    console.print(f"{switched.id} is not active{_retraining(switched)}")


@app.command()
def delete(
    extractor: Id, yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False, url: Url = None, api_key: Key = None
) -> None:
    """Delete an extractor with its weights. One that is active, or that modules wear, is kept.

    Example:

      kmserve extractors delete ext_9d8e7f6a5b4c0f8b7a6c5d4e3f2a1b0c --yes
    """
    with Connection.of(url, api_key).client() as client:
        name = client.extractor(extractor).name or "the extractor"
        if not yes and not typer.confirm(f"Delete {name} ({extractor})?"):
            raise CliError(f"{extractor} was kept")
        client.delete_extractor(extractor)
    console.print(f"deleted {extractor}")


async def _train(connection: Connection, questions: Path, wait: bool, options: dict[str, Any]) -> Job:
    async with connection.async_client() as client:
        job = await client.train_extractor(path=questions, **options)
        if not wait:
            return job
        bars = JobBars(console)
        with bars.progress:
            return await bars.follow_job(client, job, options.get("name") or questions.name)


def _recipe(pairs: Sequence[str]) -> dict[str, Any] | None:
    """None for none. Raises CliError."""
    recipe: dict[str, Any] = {}
    for pair in pairs:
        field, equals, value = pair.partition("=")
        if not equals:
            raise CliError(f"--recipe takes NAME=VALUE, not {pair}")
        try:
            recipe[field] = json.loads(value)
        except ValueError:
            recipe[field] = value
    return recipe or None


def _row(extractor: Extractor) -> tuple[str, str, str, str, str]:
    worn = f"{extractor.worn_by} modules" if extractor.worn_by else "-"
    return extractor.id, extractor.name or "-", extractor.owner, "yes" if extractor.active else "no", worn


def _retraining(switched: Switched) -> str:
    if not switched.retraining:
        return ""
    return f"; {switched.retraining} documents are trained again for what answers now, and answer as before meanwhile"
