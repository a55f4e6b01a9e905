"""One evaluation from its arguments to its files: the only place where the parts are wired together."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import cached_property
from importlib.metadata import version
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from server.engine.base_model import BaseModel, load_base, prepare_base
from server.engine.options import EngineOptions
from server.retrieval.passages import token_counter
from server.retrieval.types import Embedding
from worker.evaluation.answers import EngineReader, Reader, Remembered, Results
from worker.evaluation.artefacts import TrainedArtefacts, extractor_of
from worker.evaluation.datasets import DATASETS, load_documents
from worker.evaluation.documents import Document
from worker.evaluation.figure import draw_figure
from worker.evaluation.l2_compression import CompressedReader
from worker.evaluation.report import print_table, write_report
from worker.evaluation.retrieval import Retriever
from worker.evaluation.rows import Context, lines_of
from worker.evaluation.runner import Setting, evaluate
from worker.evaluation.summary import summarise

FIGURE = "figure1.png"
_LIBRARIES = ("torch", "transformers", "safetensors", "sentence-transformers", "rouge-score")


def run(arguments: argparse.Namespace, console: Console, load_embedder: Callable[[str | None], Embedding] | None = None) -> None:
    """Raises ValueError and KmserveError with what the user can mend."""
    lines = lines_of(arguments.rows, arguments.passages)
    documents = load_documents(arguments.dataset, arguments.data, arguments.split, arguments.documents)
    with Bar(console) as on_progress:
        base = base_of(arguments, on_progress)
        retrievers = Retrievers(base, arguments, load_embedder or packaged_embedder)
        setting = setting_of(arguments, base, documents, retrievers, on_progress)
        measurements = evaluate(setting, lines)
        on_progress("intervals and tests", 0, 1)
        summaries = summarise(measurements, arguments.seed)
        paths = write_report(arguments.out, describe(arguments, base, documents), measurements, summaries)
        draw_figure(arguments.out / FIGURE, summaries)
    print_table(console, summaries)
    for path in (*paths, arguments.out / FIGURE):
        console.print(f"written: {path}", soft_wrap=True)


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
        if doing != self._doing:
            self._doing = doing
            self._progress.reset(self._task)
        self._progress.update(self._task, description=doing, completed=done, total=total or None)


class Retrievers:
    """A retriever for each document; the embedding model is loaded when the first passage is looked for."""

    def __init__(self, base: BaseModel, arguments: argparse.Namespace, load_embedder: Callable[[str | None], Embedding]) -> None:
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


def describe(arguments: argparse.Namespace, base: BaseModel, documents: Sequence[Document]) -> dict[str, Any]:
    """Everything that the figures depend on."""
    questions = sum(len(document.questions) for document in documents)
    return {
        "dataset": f"{arguments.dataset}, split {arguments.split or DATASETS[arguments.dataset].splits[0]}",
        "documents": f"{len(documents)} with {questions} questions: {', '.join(document.name for document in documents)}",
        "base": f"{base.name}, fingerprint {base.fingerprint[:16]}, {base.device.type}, {base.dtype}",
        "passages": f"at most {arguments.passage_tokens} tokens, {arguments.embedder or 'packaged'} embedder",
        "training": f"preset {arguments.preset}, changed {arguments.recipe or 'nothing'}, seed {arguments.seed}",
        "extractor": str(arguments.extractor.name) if arguments.extractor else "none",
        "kv_drop": arguments.kv_drop,
        "libraries": ", ".join(f"{name} {version(name)}" for name in _LIBRARIES),
    }


def base_of(arguments: argparse.Namespace, on_progress: Callable[[str, int, int], None]) -> BaseModel:
    models = arguments.models_dir or arguments.cache / "models"
    models.mkdir(mode=0o700, parents=True, exist_ok=True)
    prepared = prepare_base(arguments.base, models, lambda stage, done, total: on_progress(f"base model: {stage}", done, total))
    on_progress("base model: loading", 0, 1)
    return load_base(prepared, device=arguments.device, dtype=arguments.dtype)


def setting_of(
    arguments: argparse.Namespace,
    base: BaseModel,
    documents: Sequence[Document],
    retrievers: Retrievers,
    on_progress: Callable[[str, int, int], None],
) -> Setting:
    # A single request may fill the base's whole context.
    options = EngineOptions(kv_tokens=max(EngineOptions().kv_tokens, base.context_limit))
    engine, compressed = EngineReader(base, options), CompressedReader(base, arguments.kv_drop)

    def reader(context: Context) -> Reader:
        return compressed if context is Context.COMPRESSED else engine

    artefacts = TrainedArtefacts(
        base,
        arguments.cache,
        preset=arguments.preset,
        overrides=arguments.recipe,
        seed=arguments.seed,
        retriever=retrievers,
        on_progress=on_progress,
        extractor=extractor_of(arguments.extractor) if arguments.extractor else None,
    )
    return Setting(
        base=base,
        documents=documents,
        artefacts=artefacts,
        retriever=retrievers,
        readers=reader,
        remembered=Remembered(base, Results(arguments.cache / "answers" / f"{base.fingerprint[:16]}.jsonl")),
        on_progress=on_progress,
    )


def packaged_embedder(source: str | None) -> Embedding:
    from server.retrieval.embedding import DEFAULT_EMBEDDER, Embedder  # seconds to import, and closed-book rows need none

    return Embedder(source or DEFAULT_EMBEDDER)
