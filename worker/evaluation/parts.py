"""What every command over a dataset needs, made from its arguments: a bar, the base model, a retriever for each document."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import cached_property

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from server.engine.base_model import BaseModel, load_base, prepare_base
from server.retrieval.passages import token_counter
from server.retrieval.types import Embedding
from worker.evaluation.documents import Document
from worker.evaluation.retrieval import Retriever

LoadEmbedder = Callable[[str | None], Embedding]
ASIDE = " - "
"""Before what a bar says of the same work in other words: its clock goes on."""


class Bar:
    """One bar: what is going on now, and how far it is."""

    def __init__(self, console: Console) -> None:
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=30), MofNCompleteColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, console=console, transient=True)
        self._task = self._progress.add_task("loading", total=None)
        self._doing = ""

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._progress.stop()

    def __call__(self, doing: str, done: int, total: int) -> None:
        if (work := doing.partition(ASIDE)[0]) != self._doing:
            self._doing = work
            self._progress.reset(self._task)
        self._progress.update(self._task, description=doing, completed=done, total=total or None)


class Retrievers:
    """A retriever for each document; the embedding model is loaded when the first passage is looked for."""

    def __init__(self, base: BaseModel, arguments: argparse.Namespace, load_embedder: LoadEmbedder) -> None:
        self._count = token_counter(base.tokenizer)
        self._passage_tokens: int = arguments.passage_tokens
        self._source: str | None = arguments.embedder
        self._load = load_embedder
        self._made: dict[str, Retriever] = {}

    def __call__(self, document: Document) -> Callable[[str, int], Sequence[str]]:
        return lambda question, k: self._of(document).best(question, k)

    def _of(self, document: Document) -> Retriever:
        if document.name not in self._made:
            self._made[document.name] = Retriever(document.text, self._embedder, self._count, self._passage_tokens)
        return self._made[document.name]

    @cached_property
    def _embedder(self) -> Embedding:
        return self._load(self._source)


def base_of(arguments: argparse.Namespace, on_progress: Callable[[str, int, int], None]) -> BaseModel:
    models = arguments.models_dir or arguments.cache / "models"
    models.mkdir(mode=0o700, parents=True, exist_ok=True)
    prepared = prepare_base(arguments.base, models, lambda stage, done, total: on_progress(f"base model: {stage}", done, total))
    on_progress("base model: loading", 0, 1)
    return load_base(prepared, device=arguments.device, dtype=arguments.dtype)


def passages_in_words(arguments: argparse.Namespace) -> str:
    """What retrieval finds depends on it."""
    return f"at most {arguments.passage_tokens} tokens, {arguments.embedder or 'packaged'} embedder"


def base_in_words(base: BaseModel) -> str:
    return f"{base.name}, fingerprint {base.fingerprint[:16]}, {base.device.type}, {base.dtype}"


def packaged_embedder(source: str | None) -> Embedding:
    from server.retrieval.embedding import DEFAULT_EMBEDDER, Embedder  # seconds to import, and closed-book rows need none

    return Embedder(source or DEFAULT_EMBEDDER)
