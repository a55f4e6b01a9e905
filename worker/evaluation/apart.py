"""Modules trained side by side, in processes of their own that share out the cores.

On a CPU, two trainings of one thread each do more in an hour than one of two threads after the other. What they make lies in the cache,
where an evaluation finds it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import torch

from server.engine.request import ArtefactRef
from worker.evaluation.artefacts import Progress, TrainedArtefacts
from worker.evaluation.documents import Document
from worker.evaluation.parts import LoadEmbedder, Retrievers, base_of
from worker.evaluation.rows import MIXED, Line


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A module: see `TrainedArtefacts.module`."""

    document: Document
    objective: str
    worn_ke: ArtefactRef | None = None


def wanted_by(lines: Sequence[Line], documents: Sequence[Document], extractor: Callable[[], ArtefactRef]) -> list[Wanted]:
    """The modules of a table's lines, those of mixed data first: they write the texts that the others are distilled from, too."""
    kinds = {(line.row.objective, line.row.worn) for line in lines if line.row.objective is not None}
    return [
        Wanted(document=document, objective=objective, worn_ke=extractor() if worn else None)
        for objective, worn in sorted(kinds, key=lambda kind: (kind[0] != MIXED, kind[1], kind[0]))
        for document in documents
    ]


def train_apart(
    wanted: Sequence[Wanted],
    arguments: argparse.Namespace,
    overrides: Mapping[str, Any],
    load_embedder: LoadEmbedder,
    processes: int,
    on_progress: Progress,
) -> None:
    """Train what is not there. `arguments` are those of an evaluation or an extractor's training; `overrides` change its preset;
    `load_embedder` goes to other processes: a function of a module, no lambda.

    Raises what a training raises; BrokenProcessPool if a process is killed. What was finished stays.
    """
    threads = max(1, torch.get_num_threads() // processes)
    on_progress(f"modules, {processes} at once", 0, len(wanted))
    with ProcessPoolExecutor(
        processes, mp_context=get_context("spawn"), initializer=_begin, initargs=(arguments, overrides, load_embedder, threads)
    ) as pool:
        futures = [pool.submit(_train, each) for each in wanted]
        try:
            for done, future in enumerate(as_completed(futures), start=1):
                future.result()
                on_progress(f"modules, {processes} at once", done, len(wanted))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


_artefacts: TrainedArtefacts | None = None
"""Of a process that trains."""


def _begin(arguments: argparse.Namespace, overrides: Mapping[str, Any], load_embedder: LoadEmbedder, threads: int) -> None:
    global _artefacts
    torch.set_num_threads(threads)
    base = base_of(arguments, _unheard)
    _artefacts = TrainedArtefacts(
        base,
        arguments.cache,
        preset=arguments.preset,
        overrides=overrides,
        seed=arguments.seed,
        retriever=Retrievers(base, arguments, load_embedder),
        on_progress=_unheard,
    )


def _train(wanted: Wanted) -> None:
    assert _artefacts is not None, "the process has begun"
    _artefacts.module(wanted.document, wanted.objective, wanted.worn_ke)


def _unheard(doing: str, done: int, total: int) -> None:
    """Nobody sees it."""
