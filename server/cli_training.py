"""`kmserve documents train`."""

from __future__ import annotations

import asyncio
import json
from typing import Annotated, Any

import typer
from kmserve_client.models import Document
from kmserve_client.operations import Preset, failure_of
from rich.markup import escape

from server.cli_connection import CliError, Connection, Key, Url, console, errors
from server.cli_progress import JobBars

app = typer.Typer(help="What is done with one document.", no_args_is_help=True, rich_markup_mode="rich")


@app.callback()
def documents() -> None:
    """Documents that are there already."""


@app.command()
def train(
    document: Annotated[str, typer.Argument(metavar="DOCUMENT", help="Its id.")],
    preset: Annotated[Preset | None, typer.Option(help="How much training.", show_default="the document's")] = None,
    recipe: Annotated[str | None, typer.Option("--recipe", metavar="JSON", help="Fields of the recipe that differ, as an object.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the training.", show_default="0")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Show a progress bar until the training has ended.")] = False,
    url: Url = None,
    api_key: Key = None,
) -> None:
    """Train a document's module again. The one that is there answers until the new one is published.

    Examples:

      kmserve documents train doc_3f2a1b0c9d8e7f6a5b4c0f8b7a6c5d4e --preset standard --wait

      kmserve documents train doc_3f2a1b0c9d8e7f6a5b4c0f8b7a6c5d4e --recipe '{"max_steps": 100, "rewrites": 2}'
    """
    options: dict[str, Any] = {"preset": preset, "recipe": _recipe(recipe), "seed": seed}
    connection = Connection.of(url, api_key)
    trained = asyncio.run(_train(connection, document, options, wait))
    if not wait:
        console.print(f"{trained.id}  {escape(trained.title)}  {trained.status}; `kmserve status {trained.id}` shows how far it is")
        return
    if trained.job is None or trained.job.state != "succeeded" or trained.module is None:
        errors.print(f"[yellow]{escape(str(failure_of(trained)))}[/]")
        raise typer.Exit(1)
    console.print(f"{trained.id}  {escape(trained.title)}  module v{trained.module.version}")


async def _train(connection: Connection, document: str, options: dict[str, Any], wait: bool) -> Document:
    async with connection.async_client() as client:
        queued = await client.train(document, **options)
        if not wait:
            return queued
        bars = JobBars(console)
        with bars.progress:
            return await bars.follow(client, queued)


def _recipe(text: str | None) -> dict[str, Any] | None:
    """None for none. Raises CliError."""
    try:
        recipe = None if text is None else json.loads(text)
    except ValueError:
        recipe = text
    if recipe is not None and not isinstance(recipe, dict):
        raise CliError(f"""--recipe takes a JSON object, as '{{"max_steps": 100}}', not {text}""")
    return recipe
