"""`kmserve up`: the API and the worker on this machine, until Ctrl-C."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from kmserve_client.client import Client
from kmserve_client.errors import ApiError
from rich.markup import escape

from server.cli_connection import console
from server.cli_models import prepare_apart
from server.cli_stack import Stack, StackError, configured, free_port, terminable

READY_SECONDS = 300.0
_POLL_SECONDS = 0.2


def up(
    host: Annotated[str | None, typer.Option(help="The address to listen on.", show_default="127.0.0.1")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="The port; 0 takes a free one.", show_default="8000")] = None,
    data_dir: Annotated[
        Path | None, typer.Option(file_okay=False, help="Where everything is kept.", show_default="~/.local/share/kmserve")
    ] = None,
) -> None:
    """Start the API and the training worker, and stop both on Ctrl-C.

    Everything lies in the data directory: database, documents, modules, and the admin key of the first start (admin.key). Other
    settings are KMSERVE_ environment variables.

    Examples:

      kmserve up

      KMSERVE_BASE_MODEL=./models/Llama-3.2-1B-Instruct kmserve up --port 9000 --data-dir ./data
    """
    settings, environ = configured(host=host, port=port, data_dir=data_dir)
    if settings.port == 0:
        settings, environ = configured(host=host, port=free_port(settings.host), data_dir=data_dir)
    try:
        with terminable(), Stack(settings, environ) as stack:
            prepare_apart(settings, environ)
            start(stack)
            console.print(f"kmserve is ready at [bold]{stack.url}[/]", f"the admin key is in {escape(str(stack.key_file))}", sep="\n")
            console.print("Ctrl-C stops it.")
            while True:
                stack.check()
                time.sleep(_POLL_SECONDS)
    except KeyboardInterrupt:
        console.print("stopped")


def start(stack: Stack) -> None:
    """Start the API, then, once it is ready, the worker. Raises StackError."""
    stack.start_api()
    with Client(stack.url) as client:
        wait_ready(stack, client.ready)
    stack.start_worker()
    stack.check()


def wait_ready(stack: Stack, ready: Callable[[], bool]) -> None:
    """Raises StackError if a child dies, or the API is not ready after READY_SECONDS or says that it never will be."""
    deadline = time.monotonic() + READY_SECONDS
    while not _asked(ready):
        stack.check()
        if time.monotonic() > deadline:
            raise StackError(f"the API is not ready after {READY_SECONDS:.0f} s; its log says why")
        time.sleep(_POLL_SECONDS)
    stack.check()


def _asked(ready: Callable[[], bool]) -> bool:
    try:
        return ready()
    except ApiError as error:
        raise StackError(f"the API cannot serve: {error}") from error
