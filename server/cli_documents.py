"""`kmserve upload | status | delete`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer
from kmserve_client.client import Client
from kmserve_client.errors import KmserveClientError
from kmserve_client.models import Document, Failure
from kmserve_client.operations import Preset, failure_of
from rich.markup import escape
from rich.table import Column, Table

from server.cli_connection import CliError, Connection, Key, Url, console, errors
from server.cli_progress import JobBars, duration, stage_of

PIPED_WIDTH = 200
"""Columns of a table that goes to no terminal: enough to cut nothing."""


def upload(
    files: Annotated[list[Path], typer.Argument(exists=True, dir_okay=False, readable=True, metavar="FILE", help="Documents to upload.")],
    wait: Annotated[bool, typer.Option("--wait", help="Show a progress bar per document until its module is trained.")] = False,
    train: Annotated[Literal["auto", "never"], typer.Option(help="Whether to train a module.")] = "auto",
    preset: Annotated[Preset | None, typer.Option(help="How much training.", show_default="the server's")] = None,
    url: Url = None,
    api_key: Key = None,
) -> None:
    """Upload documents: text, Markdown, HTML, PDF or DOCX.

    They can be asked within seconds, by retrieval, and better once their module is trained. The same file again gives the document
    that exists.

    Examples:

      kmserve upload handbook.pdf policy.md --wait

      kmserve upload notes.txt --train never
    """
    connection = Connection.of(url, api_key)
    outcomes = asyncio.run(_upload_all(connection, files, wait, train, preset))
    for path, outcome in zip(files, outcomes, strict=True):
        _report(path, outcome, wait)
    if any(isinstance(outcome, KmserveClientError) or not _succeeded(outcome, wait, train) for outcome in outcomes):
        raise typer.Exit(1)


async def _upload_all(
    connection: Connection, files: Sequence[Path], wait: bool, train: Literal["auto", "never"], preset: Preset | None
) -> list[Document | KmserveClientError]:
    async with connection.async_client() as client:
        bars = JobBars(console)

        async def one(path: Path) -> Document | KmserveClientError:
            try:
                document = await client.upload(path, train=train, preset=preset)
                return await bars.follow(client, document) if wait else document
            except KmserveClientError as error:
                return error

        with bars.progress:
            return await asyncio.gather(*(one(path) for path in files))


def _succeeded(document: Document, waited: bool, train: str) -> bool:
    return not waited or document.reached("ready" if train == "auto" else "retrieval_ready")


def _report(path: Path, outcome: Document | KmserveClientError, waited: bool) -> None:
    if isinstance(outcome, KmserveClientError):
        errors.print(f"[bold red]{escape(str(path))}:[/] {escape(str(outcome))}")
        return
    expected = f", about {duration(outcome.eta_seconds)} to go" if outcome.eta_seconds and not waited else ""
    console.print(f"{outcome.id}  {escape(outcome.title)}  {outcome.status}{expected}")
    if waited and outcome.settled and outcome.module is None and (outcome.error or (outcome.job and outcome.job.error)):
        errors.print(f"[yellow]{escape(str(failure_of(outcome)))}[/]")


def status(
    documents: Annotated[list[str] | None, typer.Argument(metavar="DOCUMENT", help="Ids; all documents where none is given.")] = None,
    url: Url = None,
    api_key: Key = None,
) -> None:
    """Show documents: their status, their module, what is under way.

    Examples:

      kmserve status

      kmserve status doc_3f2a1b0c9d8e7f6a5b4c0f8b7a6c5d4e
    """
    with Connection.of(url, api_key).client() as client:
        found = [client.document(each) for each in documents] if documents else list(client.documents())
    if not found:
        console.print("no documents yet: `kmserve upload FILE` adds one")
        return
    table = Table(
        Column("id", no_wrap=True), "title", Column("status", no_wrap=True), "module", "under way", "error", box=None, pad_edge=False
    )
    for document in found:
        table.add_row(*(escape(cell) for cell in _row(document)))
    console.print(table, width=None if console.is_terminal else PIPED_WIDTH)
    for document in found:
        if (error := _error(document)) is not None:
            console.print(f"{document.id}: {escape(error.message)}", soft_wrap=True)


def _error(document: Document) -> Failure | None:
    return document.error or (document.job.error if document.job else None)


def _row(document: Document) -> tuple[str, str, str, str, str, str]:
    module = f"v{document.module.version}" if document.module else "-"
    if document.module is not None and document.module.state != "published":
        module += f" ({document.module.state})"
    error = _error(document)
    return document.id, document.title, document.status, module, _under_way(document), error.code if error else ""


def _under_way(document: Document) -> str:
    if document.settled or document.job is None:
        return ""
    progress = document.job.progress
    if progress is None or not progress.total:
        return stage_of(document)
    left = f", {duration(progress.eta_seconds)} left" if progress.eta_seconds is not None else ""
    return f"{stage_of(document)} {progress.done / progress.total:.0%}{left}"


def delete(
    documents: Annotated[list[str], typer.Argument(metavar="DOCUMENT", help="Ids of the documents.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    url: Url = None,
    api_key: Key = None,
) -> None:
    """Delete documents with their text, passages and modules. What is under way for them stops.

    Example:

      kmserve delete doc_3f2a1b0c9d8e7f6a5b4c0f8b7a6c5d4e --yes
    """
    with Connection.of(url, api_key).client() as client:
        for each in documents:
            _delete(client, each, yes)


def _delete(client: Client, document_id: str, yes: bool) -> None:
    title = client.document(document_id).title
    if not yes and not typer.confirm(f"Delete {title} ({document_id}) and everything learned from it?"):
        raise CliError(f"{document_id} was kept")
    receipt = client.delete(document_id)
    removed = f"{receipt.removed.passages} passages, {len(receipt.removed.modules)} modules"
    rest = "" if receipt.complete else "; the server is still removing the rest"
    console.print(f"deleted {document_id}: {removed}{rest}")
