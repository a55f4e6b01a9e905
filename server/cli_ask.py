"""`kmserve ask | search`."""

from __future__ import annotations

from typing import Annotated

import typer
from kmserve_client.client import Client
from kmserve_client.models import Answer, Citation, Delta, Mode
from kmserve_client.operations import AskOptions
from rich.markup import escape

from server.cli_connection import Connection, Key, Url, console

Documents = Annotated[
    list[str] | None, typer.Option("--document", "-d", help="Ask this document only; may be repeated.", metavar="DOCUMENT")
]
TopK = Annotated[int | None, typer.Option("--top-k", "-k", min=1, help="How many passages.", show_default="the server's")]


def ask(
    question: Annotated[str, typer.Argument(help="The question.")],
    document: Documents = None,
    mode: Annotated[Mode, typer.Option(help="How to answer; `auto` lets the server choose.")] = "auto",
    stream: Annotated[bool, typer.Option("--stream", help="Print the answer as it is written.")] = False,
    top_k: TopK = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="The longest answer.", show_default="the server's")] = None,
    url: Url = None,
    api_key: Key = None,
) -> None:
    """Ask a question about your documents.

    Examples:

      kmserve ask "How many days of leave does everyone get?"

      kmserve ask "Who approves a course?" -d doc_3f2a… --mode closed_book --stream
    """
    options = AskOptions(mode=mode)
    if document:
        options.update({"document_id": document[0]} if len(document) == 1 else {"document_ids": document})
    if top_k is not None:
        options["top_k"] = top_k
    if max_tokens is not None:
        options["max_tokens"] = max_tokens
    with Connection.of(url, api_key).client() as client:
        answer = _streamed(client, question, options) if stream else client.ask(question, **options)
    if not stream:
        console.print(escape(answer.answer))
    _print_sources(answer)


def _streamed(client: Client, question: str, options: AskOptions) -> Answer:
    """Print the text as it comes; the whole answer is the last event."""
    answer: Answer | None = None
    for event in client.ask_stream(question, **options):
        if isinstance(event, Delta):
            console.print(escape(event.text), end="")
        elif isinstance(event, Answer):
            answer = event
    console.print()
    assert answer is not None  # a stream that ends without one raises
    return answer


def _print_sources(answer: Answer) -> None:
    for number, citation in enumerate(answer.citations, start=1):
        console.print(f"[dim]\\[{number}] {escape(source_of(citation))}  {escape(one_line(citation.quote))}[/]")
    module = f"module v{answer.used.km.version}" if answer.used.km else "no module"
    console.print(f"[dim]{answer.used.mode}, {module}, {answer.usage.prompt_tokens} + {answer.usage.completion_tokens} tokens[/]")


def search(
    query: Annotated[str, typer.Argument(help="What to look for.")],
    document: Documents = None,
    top_k: TopK = None,
    url: Url = None,
    api_key: Key = None,
) -> None:
    """Find the passages nearest to a query.

    Example:

      kmserve search "parental leave" -k 3
    """
    with Connection.of(url, api_key).client() as client:
        hits = client.search(query, document_ids=document or None, top_k=top_k)
    for hit in hits:
        console.print(
            f"[bold]{hit.score:.3f}[/]  {escape(source_of(hit))}  [dim]{hit.document_id}[/]\n       {escape(one_line(hit.quote, 300))}"
        )
    if not hits:
        console.print("no passages found")


def source_of(citation: Citation) -> str:
    name = citation.filename or citation.document_id
    return name if citation.page is None else f"{name}, page {citation.page}"


def one_line(text: str, longest: int = 120) -> str:
    joined = " ".join(text.split())
    return joined if len(joined) <= longest else f"{joined[: longest - 1]}…"
