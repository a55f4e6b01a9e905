"""Trainings in processes of their own: what one raises or dies of ends the others, and none outlives who asked for it."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from server.errors import InvalidInput
from tests.support.worker_process import ROOT
from worker.evaluation import apart
from worker.evaluation.apart import Setup, TrainingKilled, Wanted, train_apart
from worker.evaluation.artefacts import Progress
from worker.evaluation.documents import Document

PATIENCE = 150.0


class Artefacts:
    """In the place of the real ones: a document's text says what its training does; `folder` gets the process's id under its name."""

    def __init__(self, folder: Path, on_progress: Progress) -> None:
        self._folder = folder
        self._on_progress = on_progress

    def module(self, document: Document, objective: str, worn_ke: object) -> None:
        (self._folder / f"{document.name}.part").write_text(str(os.getpid()))
        (self._folder / f"{document.name}.part").rename(self._folder / document.name)
        match document.text:
            case "steps":
                for step in (1, 2):
                    self._on_progress(f"mixed of {document.name}: fitting", step, 2)
            case "fails":
                raise InvalidInput("this one cannot be trained")
            case "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            case "waits":
                time.sleep(PATIENCE)


def fake_artefacts(setup: Setup, on_progress: Progress) -> Artefacts:
    return Artefacts(setup.arguments.out, on_progress)


def serve(connection: Connection, setup: Setup) -> None:
    """What a process does, with other artefacts: a new interpreter knows of no patch."""
    apart._artefacts = fake_artefacts  # type: ignore[assignment]
    apart_serve(connection, setup)


apart_serve = apart._serve


def embedder(source: str | None) -> None:
    raise AssertionError


def train(folder: Path, *texts: str, processes: int = 2) -> list[tuple[str, int]]:
    """One document of each text; what was reported: what goes on, and how many are done."""
    heard: list[tuple[str, int]] = []
    wanted = [Wanted(document=Document(name=f"{n}", text=text, questions=()), objective="mixed") for n, text in enumerate(texts)]
    setup = Setup(arguments=argparse.Namespace(out=folder), overrides={}, load_embedder=embedder, threads=1)  # type: ignore[arg-type]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(apart, "_serve", serve)
        train_apart(wanted, processes, setup, lambda doing, done, total: heard.append((doing, done)))
    return heard


def begun(folder: Path, *names: str) -> list[int]:
    """The processes that train these documents, once they do."""
    until = time.monotonic() + PATIENCE
    while not all((folder / name).exists() for name in names):
        assert time.monotonic() < until
        time.sleep(0.02)
    return [int((folder / name).read_text()) for name in names]


def gone(process: int) -> bool:
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.02)
    return False


def test_as_many_at_once_as_wanted_and_each_once(tmp_path: Path) -> None:
    heard = train(tmp_path, "", "steps", "")
    assert list(dict.fromkeys(done for _, done in heard)) == [0, 1, 2, 3]
    assert [doing for doing, _ in heard if "fitting" in doing] == [f"modules, 2 at once - fitting {step}/2" for step in (1, 2)]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["0", "1", "2"]
    assert train(tmp_path) == []


@pytest.mark.parametrize(("text", "error"), [pytest.param("fails", InvalidInput, marks=pytest.mark.slow), ("dies", TrainingKilled)])
def test_after_one_that_does_not_end_well_none_begins_and_none_goes_on(tmp_path: Path, text: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        train(tmp_path, "waits", text, "", "", "")
    assert all(gone(process) for process in begun(tmp_path, "1"))
    assert not {"2", "3", "4"} & {file.name for file in tmp_path.iterdir()}
    if (tmp_path / "0").exists():
        assert gone(*begun(tmp_path, "0"))


@pytest.mark.parametrize(
    "how", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow), pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_they_end_with_who_asked_for_them(tmp_path: Path, how: signal.Signals) -> None:
    asked = f"from tests.integration.test_training_apart import Path, train; train(Path({str(tmp_path)!r}), 'waits', 'waits', '')"
    with subprocess.Popen([sys.executable, "-c", asked], cwd=ROOT, stderr=subprocess.DEVNULL) as parent:
        processes = begun(tmp_path, "0", "1")
        parent.send_signal(how)
        assert parent.wait(PATIENCE) != 0
    assert all(map(gone, processes))
    assert not (tmp_path / "2").exists()
