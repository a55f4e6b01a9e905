"""One evaluation from its arguments to its files: the only place where the parts are wired together."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from server.engine.base_model import BaseModel
from server.engine.options import EngineOptions
from server.engine.request import ArtefactRef
from server.modules.shipped import shipped_for
from worker.evaluation.answers import EngineReader, Reader, Remembered, Results
from worker.evaluation.apart import setup_of, train_apart, untrained, wanted_by
from worker.evaluation.arguments import NONE
from worker.evaluation.artefacts import ArtefactUnavailable, TrainedArtefacts, extractor_of
from worker.evaluation.checks import require_possible
from worker.evaluation.datasets import DATASETS, load_documents
from worker.evaluation.documents import Document
from worker.evaluation.l2_compression import CompressedReader
from worker.evaluation.output import require_folder
from worker.evaluation.parts import Bar, LoadEmbedder, Retrievers, base_in_words, base_of, packaged_embedder, passages_in_words
from worker.evaluation.report import print_table, write_report
from worker.evaluation.rows import Context, Line, lines_of
from worker.evaluation.runner import TOGETHER, Setting, evaluate
from worker.evaluation.summary import Summary, summarise
from worker.training.recipe import as_json

_LIBRARIES = ("torch", "transformers", "safetensors", "sentence-transformers", "rouge-score")


def run(arguments: argparse.Namespace, console: Console, load_embedder: LoadEmbedder = packaged_embedder) -> None:
    """Raises ValueError and KmserveError with what the user can mend, before the first training where it can be known then."""
    lines = lines_of(arguments.rows, arguments.passages)
    documents = load_documents(arguments.dataset, arguments.data, arguments.split, arguments.documents)
    require_folder(arguments.out)
    require_folder(arguments.cache)
    summaries: list[Summary] = []
    with Bar(console) as on_progress:
        base = base_of(arguments, on_progress)
        setting = setting_of(arguments, base, documents, lines, Retrievers(base, arguments, load_embedder), on_progress)
        require_possible(setting, lines)
        described = describe(arguments, setting, lines)
        train_first(arguments, setting, lines, load_embedder)
        for summary in summarise(evaluate(setting, lines), arguments.seed):
            summaries.append(summary)
            paths = write_report(arguments.out, described, summaries, complete=len(summaries) == len(lines))
    print_table(console, summaries)
    for path in paths:
        console.print(f"written: {path}", soft_wrap=True)


def describe(arguments: argparse.Namespace, setting: Setting, lines: Sequence[Line]) -> dict[str, Any]:
    """Everything that the figures depend on. Raises InvalidInput for a recipe that is none."""
    documents = setting.documents
    questions = sum(len(document.questions) for document in documents)
    return {
        "dataset": f"{arguments.dataset}, split {arguments.split or DATASETS[arguments.dataset].splits[0]}",
        "documents": f"{len(documents)} with {questions} questions: {', '.join(document.name for document in documents)}",
        "base": base_in_words(setting.base),
        "passages": passages_in_words(arguments),
        "training": f"preset {arguments.preset}, changed {arguments.recipe or 'nothing'}, seed {arguments.seed}",
        "recipes": recipes_of(setting, lines),
        "extractor": in_words(setting.artefacts.extractor),
        "worn": in_words(setting.artefacts.worn_extractor),
        "kv_drop": arguments.kv_drop,
        "computed": f"{date.today().isoformat()}, {torch.get_num_threads()} threads",
        "libraries": ", ".join(f"{name} {version(name)}" for name in _LIBRARIES),
    }


def recipes_of(setting: Setting, lines: Sequence[Line]) -> dict[str, dict[str, Any]]:
    """By objective, `mixed (worn)` for modules that wear an extractor: every field, for presets change."""
    kinds = dict.fromkeys((line.row.objective, line.row.worn) for line in lines if line.row.objective is not None)
    return {f"{objective}{' (worn)' if worn else ''}": as_json(setting.artefacts.recipe(objective, worn=worn)) for objective, worn in kinds}


def in_words(extractor: Callable[[], ArtefactRef]) -> str:
    """By name and digests; `none` where there is none."""
    try:
        ref = extractor()
    except ArtefactUnavailable:
        return NONE
    return f"{ref.directory.name}, lora {ref.digest[:16]}, composition {(ref.composition or '')[:16]}"


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
    lines: Sequence[Line],
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
        passages=passages_in_words(arguments),
        on_progress=on_progress,
        extractor=_extractor(arguments.extractor, base, lines),
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


def _extractor(named: Path | str | None, base: BaseModel, lines: Sequence[Line]) -> ArtefactRef | None:
    """Where none is named, the one that ships for the base, if a line wears one. Raises ArtefactUnavailable for what is no extractor."""
    if named is None and any(line.row.extractor for line in lines):
        named = next(iter(shipped_for(base.fingerprint)), None)
    return None if named is None or named == NONE else extractor_of(Path(named))
