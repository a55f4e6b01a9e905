"""One evaluation from its arguments to its files: the only place where the parts are wired together."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

from server.engine.base_model import BaseModel
from server.engine.options import EngineOptions
from worker.evaluation.answers import EngineReader, Reader, Remembered, Results
from worker.evaluation.apart import setup_of, train_apart, untrained, wanted_by
from worker.evaluation.artefacts import TrainedArtefacts, extractor_of
from worker.evaluation.datasets import DATASETS, load_documents
from worker.evaluation.documents import Document
from worker.evaluation.figure import draw_figure
from worker.evaluation.l2_compression import CompressedReader
from worker.evaluation.parts import Bar, LoadEmbedder, Retrievers, base_of, packaged_embedder
from worker.evaluation.report import print_table, write_report
from worker.evaluation.rows import Context, Line, lines_of
from worker.evaluation.runner import TOGETHER, Setting, evaluate
from worker.evaluation.summary import summarise

FIGURE = "figure1.png"
_LIBRARIES = ("torch", "transformers", "safetensors", "sentence-transformers", "rouge-score")


def run(arguments: argparse.Namespace, console: Console, load_embedder: LoadEmbedder = packaged_embedder) -> None:
    """Raises ValueError and KmserveError with what the user can mend."""
    lines = lines_of(arguments.rows, arguments.passages)
    documents = load_documents(arguments.dataset, arguments.data, arguments.split, arguments.documents)
    with Bar(console) as on_progress:
        base = base_of(arguments, on_progress)
        retrievers = Retrievers(base, arguments, load_embedder)
        setting = setting_of(arguments, base, documents, retrievers, on_progress)
        train_first(arguments, setting, lines, load_embedder)
        measurements = evaluate(setting, lines)
        on_progress("intervals and tests", 0, 1)
        summaries = summarise(measurements, arguments.seed)
        paths = write_report(arguments.out, describe(arguments, base, documents), measurements, summaries)
        draw_figure(arguments.out / FIGURE, summaries)
    print_table(console, summaries)
    for path in (*paths, arguments.out / FIGURE):
        console.print(f"written: {path}", soft_wrap=True)


def describe(arguments: argparse.Namespace, base: BaseModel, documents: Sequence[Document]) -> dict[str, Any]:
    """Everything that the figures depend on."""
    questions = sum(len(document.questions) for document in documents)
    return {
        "dataset": f"{arguments.dataset}, split {arguments.split or DATASETS[arguments.dataset].splits[0]}",
        "documents": f"{len(documents)} with {questions} questions: {', '.join(document.name for document in documents)}",
        "base": f"{base.name}, fingerprint {base.fingerprint[:16]}, {base.device.type}, {base.dtype}",
        "passages": f"at most {arguments.passage_tokens} tokens, {arguments.embedder or 'packaged'} embedder",
        "training": f"preset {arguments.preset}, changed {arguments.recipe or 'nothing'}, seed {arguments.seed}",
        "extractor": _extractor(arguments.extractor),
        "worn": _extractor(arguments.worn or arguments.extractor),
        "kv_drop": arguments.kv_drop,
        "libraries": ", ".join(f"{name} {version(name)}" for name in _LIBRARIES),
    }


def _extractor(directory: Path | None) -> str:
    if directory is None:
        return "none"
    ref = extractor_of(directory)
    return f"{directory.name}, lora {ref.digest[:16]}, composition {(ref.composition or '')[:16]}"


def train_first(arguments: argparse.Namespace, setting: Setting, lines: Sequence[Line], load_embedder: LoadEmbedder) -> None:
    """The lines' modules, several at a time, where that was asked for; else each is trained when its line needs it."""
    if arguments.trainers == 1:
        return
    missing = untrained(wanted_by(lines, setting.documents, setting.artefacts.worn_extractor), setting.artefacts)
    train_apart(missing, arguments.trainers, setup_of(arguments, arguments.recipe, load_embedder), setting.on_progress)


def setting_of(
    arguments: argparse.Namespace,
    base: BaseModel,
    documents: Sequence[Document],
    retrievers: Retrievers,
    on_progress: Callable[[str, int, int], None],
) -> Setting:
    # A single request may fill the base's whole context; and what was read for an answer is there for its scores.
    usual = EngineOptions().kv_tokens
    options = EngineOptions(kv_tokens=max(usual, base.context_limit), prefix_tokens=usual, max_batch=TOGETHER)
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
        worn_extractor=extractor_of(arguments.worn) if arguments.worn else None,
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
