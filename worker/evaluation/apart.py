"""Modules trained side by side, in processes of their own that share out the cores.

On a CPU, two trainings of one thread each do more in an hour than one of two threads after the other. What they make lies in the cache,
where an evaluation finds it. Whoever asked for them is the only one who knows of them: they end with it, however it ends.
"""

from __future__ import annotations

import argparse
import os
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

import torch

from server.engine.request import ArtefactRef
from worker.evaluation.artefacts import Artefacts, Progress, TrainedArtefacts
from worker.evaluation.documents import Document
from worker.evaluation.parts import ASIDE, LoadEmbedder, Retrievers, base_of, passages_in_words
from worker.evaluation.rows import MIXED, Line

PATIENCE = 10.0
"""Seconds that an ended process is waited for."""


class Step(NamedTuple):
    """What a process says of a training that goes on: see `Progress`."""

    doing: str
    done: int
    total: int


class TrainingKilled(ValueError):
    """A process that trained is gone without a word."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A module: see `TrainedArtefacts.module`."""

    document: Document
    objective: str
    worn_ke: ArtefactRef | None = None


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What a process makes its trainings of. `arguments` are those of an evaluation or an extractor's training; `overrides` change its
    preset; `load_embedder` goes to other processes: a function of a module, no lambda."""

    arguments: argparse.Namespace
    overrides: Mapping[str, Any]
    load_embedder: LoadEmbedder
    threads: int


def setup_of(arguments: argparse.Namespace, overrides: Mapping[str, Any], load_embedder: LoadEmbedder) -> Setup:
    """Each of `arguments.trainers` processes with its share of the threads."""
    threads = max(1, torch.get_num_threads() // arguments.trainers)
    return Setup(arguments=arguments, overrides=overrides, load_embedder=load_embedder, threads=threads)


def wanted_by(lines: Sequence[Line], documents: Sequence[Document], worn_extractor: Callable[[], ArtefactRef]) -> list[Wanted]:
    """The modules of a table's lines, those of mixed data first: they write the texts that the others are distilled from, too."""
    kinds = {(line.row.objective, line.row.worn) for line in lines if line.row.objective is not None}
    return [
        Wanted(document=document, objective=objective, worn_ke=worn_extractor() if worn else None)
        for objective, worn in sorted(kinds, key=lambda kind: (kind[0] != MIXED, kind[1], kind[0]))
        for document in documents
    ]


def untrained(wanted: Sequence[Wanted], artefacts: Artefacts) -> list[Wanted]:
    """Those that are not there: no process is started for what is."""
    return [each for each in wanted if not artefacts.has(each.document, each.objective, each.worn_ke)]


def train_apart(wanted: Sequence[Wanted], processes: int, setup: Setup, on_progress: Progress) -> None:
    """Train each. Raises what a training raises, TrainingKilled if a process was killed: no other begins then, those that run are ended,
    what was finished stays."""
    if not wanted:
        return
    waiting, done = list(wanted), 0
    helpers = [_Helper(setup) for _ in range(min(processes, len(waiting)))]
    try:
        for helper in helpers:
            helper.give(waiting.pop(0))
        on_progress(_doing(helpers), 0, len(wanted))
        while done < len(wanted):
            for connection in wait([helper.connection for helper in helpers if helper.busy]):
                helper = next(each for each in helpers if each.connection is connection)
                helper.hear()
                done += not helper.busy
                if waiting and not helper.busy:
                    helper.give(waiting.pop(0))
                on_progress(_doing(helpers), done, len(wanted))
    finally:
        for helper in helpers:
            helper.end()


def _doing(helpers: Sequence[_Helper]) -> str:
    """The stage of each training, and how far it is; the documents' names would fill the line."""
    steps = [f"{helper.step.doing.rpartition(': ')[2]} {helper.step.done}/{helper.step.total}" for helper in helpers if helper.step]
    return f"modules, {len(helpers)} at once{ASIDE if steps else ''}{', '.join(steps)}"


class _Helper:
    """A process that trains one module after the other."""

    def __init__(self, setup: Setup) -> None:
        context = get_context("spawn")
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, setup), daemon=True)
        self._process.start()
        theirs.close()
        self.busy = False
        self.step: Step | None = None

    def give(self, wanted: Wanted) -> None:
        self.connection.send(wanted)
        self.busy = True

    def hear(self) -> None:
        """What it says: a step, or that its training has ended, well or with the error that is raised here."""
        try:
            said: Step | Exception | None = self.connection.recv()
        except (EOFError, ConnectionResetError):
            self._process.join(PATIENCE)
            code = self._process.exitcode
            raise TrainingKilled(
                f"a process that trained a module ended with {code}: if it was memory, let fewer train at once (--trainers)"
            ) from None
        self.step = said if isinstance(said, Step) else None
        self.busy = self.step is not None
        if isinstance(said, Exception):
            raise said

    def end(self) -> None:
        self._process.terminate()
        self._process.join(PATIENCE)
        self.connection.close()


def _serve(connection: Connection, setup: Setup) -> None:
    """Of such a process: all that it does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's goes to the parent too, which ends this process
    threading.Thread(target=_end_with_parent, daemon=True).start()
    artefacts: TrainedArtefacts | None = None
    while True:
        try:
            wanted: Wanted = connection.recv()
        except EOFError:
            return
        try:
            artefacts = artefacts or _artefacts(setup, lambda *step: connection.send(Step(*step)))
            artefacts.module(wanted.document, wanted.objective, wanted.worn_ke)
        except Exception as error:
            connection.send(error)
        else:
            connection.send(None)


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _artefacts(setup: Setup, on_progress: Progress) -> TrainedArtefacts:
    torch.set_num_threads(setup.threads)
    base = base_of(setup.arguments, on_progress)
    return TrainedArtefacts(
        base,
        setup.arguments.cache,
        preset=setup.arguments.preset,
        overrides=setup.overrides,
        seed=setup.arguments.seed,
        retriever=Retrievers(base, setup.arguments, setup.load_embedder),
        passages=passages_in_words(setup.arguments),
        on_progress=on_progress,
    )
