"""How a command finds its server and its key, and how it says what went wrong."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from kmserve_client.aio import AsyncClient
from kmserve_client.client import Client
from kmserve_client.errors import ApiError, ConnectionFailed, KmserveClientError, NotFound
from rich.console import Console
from rich.markup import escape
from typer.core import TyperGroup

from server.cli_stack import StackError
from server.errors import KmserveError
from server.presence import running_url
from server.settings import load_settings

URL_VARIABLE = "KMS_URL"
KEY_VARIABLE = "KMS_API_KEY"

Url = Annotated[str | None, typer.Option("--url", envvar=URL_VARIABLE, help="The server.", show_default="http://127.0.0.1:8000")]
Key = Annotated[
    str | None,
    typer.Option("--api-key", envvar=KEY_VARIABLE, help="The API key.", show_default="admin.key of the data directory", show_envvar=True),
]

console = Console(highlight=False, soft_wrap=True)
errors = Console(stderr=True, highlight=False, soft_wrap=True)


class CliError(Exception):
    """What the user can mend; the message says how."""


@dataclass(frozen=True, kw_only=True)
class Connection:
    """Where the server is. Without options or variables: the one that runs in the data directory, else the one that the settings start."""

    url: str
    api_key: str

    @staticmethod
    def of(url: str | None, api_key: str | None) -> Connection:
        """Raises CliError when no key is given and none lies in the data directory, or nothing says on which port the server listens."""
        settings = load_settings()
        found = url or running_url(settings) or (settings.url if settings.port else None)
        if found is None:
            raise CliError(
                f"KMSERVE_PORT is 0 and no server runs here: start one with `kmserve up`, or name one with --url or {URL_VARIABLE}"
            )
        return Connection(url=found, api_key=api_key or read_key(settings.root / "admin.key"))

    def client(self, **options: Any) -> Client:
        return Client(self.url, self.api_key, **options)

    def async_client(self, **options: Any) -> AsyncClient:
        return AsyncClient(self.url, self.api_key, **options)


def read_key(path: Path) -> str:
    """Raises CliError."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise CliError(
            f"no API key: give --api-key, set {KEY_VARIABLE}, or start the server here with `kmserve up`, "
            f"which writes one to {path} ({os.strerror(error.errno or 0).lower()})"
        ) from None


class ExplainingGroup(TyperGroup):
    """Ends a command that failed with one line on standard error and exit code 1, one that was interrupted with 130."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
        except (CliError, StackError, KmserveClientError, KmserveError, ValueError) as error:
            errors.print(f"[bold red]error:[/] {escape(explanation(error))}")
            raise typer.Exit(1) from None


def explanation(error: Exception) -> str:
    """The error and, where there is one, the next thing to do."""
    if isinstance(error, ConnectionFailed):
        return f"{error}\nIs it running? Start it with `kmserve up`, or name another one with --url or {URL_VARIABLE}."
    if isinstance(error, NotFound):
        listing = (
            "`kmserve extractors list` lists the extractors"
            if error.code == "extractor_not_found"
            else "`kmserve status` lists the documents"
        )
        return f"{error}\n{listing}."
    if isinstance(error, ApiError) and error.code == "module_not_ready":
        return f"{error}\nAsk with --mode retrieval until `kmserve status` shows it as ready."
    return str(error)
