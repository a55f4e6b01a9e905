"""The console script `kmserve`. The commands are in the `cli_*` modules, which alone of the server use the client package."""

from __future__ import annotations

import typer

from server import cli_extractors, cli_models, cli_training
from server.cli_ask import ask, search
from server.cli_connection import ExplainingGroup
from server.cli_demo import demo
from server.cli_documents import delete, status, upload
from server.cli_eval import evaluate
from server.cli_up import up

app = typer.Typer(
    name="kmserve",
    cls=ExplainingGroup,
    help="An inference server that knows your private documents.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
)
for command in (up, demo, upload, status, ask, search, delete):
    app.command()(command)
app.command("eval")(evaluate)
app.add_typer(cli_training.app, name="documents")
app.add_typer(cli_extractors.app, name="extractors")
app.add_typer(cli_models.app, name="models")


def main() -> None:
    app()


if __name__ == "__main__":
    main()
