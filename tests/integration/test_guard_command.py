"""`python -m worker.evaluation.guard` from a module's directory to its figure."""

from __future__ import annotations

import json
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from server.engine.base_model import load_base, prepare_base
from server.modules.artefact import write_artefact
from tests.support import base_files
from tests.support.tiny_models import tiny_artefact
from worker.evaluation import guard_measure
from worker.evaluation.artefacts import ArtefactUnavailable, module_of
from worker.evaluation.guard import parse_arguments
from worker.evaluation.guard_measure import run
from worker.training.guard import reserved_questions

SHORT = [question for question in reserved_questions() if len(question) < 22]


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A base model's files and two modules, one of which is all zeros."""
    monkeypatch.setattr(guard_measure, "reserved_questions", lambda: SHORT)
    base = load_base(prepare_base(str(base_files.save(tmp_path / "base")), tmp_path / "models"), dtype="float32")
    for name, size in (("nothing", 0.0), ("module", 0.3)):
        made = tiny_artefact(base, 1, size=size)
        manifest = replace(made.manifest, base_fingerprint=base.fingerprint, recipe={"preset": "quick"})
        write_artefact(tmp_path / name, a=made.a, b=made.b, manifest=manifest, base_model_name="tiny")
    return tmp_path


def measured(house: Path, module: str, *options: str) -> dict[str, float]:
    """What the command prints."""
    printed = StringIO()
    places = ["--base", str(house / "base"), "--models-dir", str(house / "models"), "--cache", str(house / "cache")]
    run(parse_arguments(["--module", str(house / module), *places, "--dtype", "float32", *options]), Console(file=printed))
    found: dict[str, float] = json.loads(printed.getvalue())
    return found


def test_a_module_that_changes_nothing_has_zero_and_another_more(house: Path) -> None:
    nothing = measured(house, "nothing")
    [answers] = (house / "cache" / "guard").iterdir()
    kept = answers.read_bytes()
    module = measured(house, "module")
    assert nothing["guard_kl"] == pytest.approx(0, abs=1e-6)
    assert module["guard_kl"] > 0.01
    assert nothing["questions"] == module["questions"] == len(SHORT)
    assert len([line for line in kept.splitlines() if line]) == len(SHORT)
    assert answers.read_bytes().strip() == kept.strip(), "each answer is generated once"


def test_a_file_gets_every_question_and_what_module_it_is(house: Path) -> None:
    out = house / "figures" / "guard.json"
    printed = measured(house, "module", "--json", str(out))
    report = json.loads(out.read_text())
    manifest = json.loads((house / "module" / "manifest.json").read_text())
    assert report["module"] == {
        "digest": module_of(house / "module").digest,
        "objective": manifest["objective"],
        "seed": manifest["seed"],
        "recipe": manifest["recipe"],
    }
    assert {name: report[name] for name in printed} == printed
    answers = report["answers"]
    assert len(answers) == printed["questions"] == len(SHORT)
    mean = sum(answer["guard_kl"] * answer["tokens"] for answer in answers) / sum(answer["tokens"] for answer in answers)
    assert mean == pytest.approx(printed["guard_kl"])
    assert {answer["question"].rpartition("\n")[2] for answer in answers} == set(SHORT)


def test_a_file_that_cannot_be_written_is_said_before_the_base_is_loaded(house: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard_measure, "base_of", lambda *arguments: pytest.fail("nothing was to be loaded"))
    with pytest.raises(ValueError, match="cannot be made"):
        measured(house, "module", "--json", str(house / "module" / "manifest.json" / "guard.json"))


def test_what_is_no_module_is_explained(house: Path) -> None:
    with pytest.raises(ArtefactUnavailable, match="holds no knowledge module"):
        measured(house, "base")
