"""The table from end to end: a random tiny model, two tiny stories, modules of a few steps, every file of the report."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from server.cli_eval import arguments as command_line
from server.engine.base_model import load_base, prepare_base
from server.errors import InvalidInput
from server.modules.artefact import write_artefact
from tests.support.base_files import save, stretched
from tests.support.embeddings import FakeEmbedder, fake_embedder
from tests.support.tiny_fairytaleqa import write_story
from tests.support.tiny_models import tiny_artefact
from tests.support.tiny_training import TWO_STEPS
from worker.evaluation import answers, artefacts, refusals
from worker.evaluation.arguments import parse_arguments
from worker.evaluation.artefacts import ArtefactUnavailable, extractor_of
from worker.evaluation.run import run

ROWS = "base,KM_mixed,RAG,RAG+KM"
FILES = {"table.json", "table.csv", "table.md", "questions.jsonl", "figure1.png"}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model and two stories, as files."""
    folder = tmp_path_factory.mktemp("house")
    stretched(save(folder / "base"))
    fox = ["A grey fox ran over the old bridge at night.", "It slept in the mill until the morning came. Then it ate two plums."]
    hen = ["A red hen sat on a brown egg in the barn.", "Nobody else had ever seen so large an egg. She was proud of it."]
    write_story(folder, "val", "fox", fox, [("What ran?", "a fox", "a grey fox"), ("Where did it sleep?", "in the mill", "")])
    write_story(folder, "val", "hen", hen, [("What sat on an egg?", "a hen", "")])
    return folder


@pytest.fixture(scope="module")
def extractor(house: Path) -> Path:
    """A random one for the house's base."""
    base = load_base(prepare_base(str(house / "base"), house / "models"), dtype="float32")
    made = tiny_artefact(base, 1, size=0.3, extractor=True)
    write_artefact(house / "extractor", a=made.a, b=made.b, manifest=made.manifest, base_model_name="tiny", composition=made.composition)
    return house / "extractor"


@pytest.fixture
def nothing_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """No training, no answer."""
    for module, name in ((artefacts, "train"), (answers, "generate_on"), (answers, "score_on")):
        monkeypatch.setattr(module, name, refuse)


def arguments(house: Path, **options: Any) -> Any:
    given = {
        "dataset": "fairytaleqa",
        "data": house,
        "base": house / "base",
        "rows": ROWS,
        "passages": "1,2",
        "passage_tokens": 48,
        "recipe": json.dumps(TWO_STEPS),
        "out": house / "out",
        "cache": house / "cache",
        **options,
    }
    return parse_arguments(command_line(given))


def table(house: Path, **options: Any) -> tuple[str, dict[str, Any]]:
    output = StringIO()
    chosen = arguments(house, **options)
    run(chosen, Console(file=output, width=220), lambda source: FakeEmbedder())
    return output.getvalue(), json.loads((chosen.out / "table.json").read_text())


def refuse(*arguments: Any, **options: Any) -> Any:
    raise AssertionError("it was computed before")


def test_the_whole_table_and_again_without_computing(house: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text, report = table(house)
    labels = ["base", "KM_mixed", "RAG, k=1", "RAG, k=2", "RAG+KM, k=1", "RAG+KM, k=2"]
    assert [label for label in labels if label not in text] == []
    lines = report["lines"]
    assert [(line["row"], line["passages"]) for line in lines[:3]] == [("base", 0), ("KM_mixed", 0), ("RAG", 1)]
    assert all(set(line["measures"]) == {"rouge_l", "gold_nll", "gold_nll_eos"} for line in lines)
    base, module, one, two = lines[:4]
    assert base["measures"]["gold_nll"]["mean"] > 0
    assert module["measures"]["gold_nll"] != base["measures"]["gold_nll"]
    assert base["prompt_tokens"] == module["prompt_tokens"] < one["prompt_tokens"] < two["prompt_tokens"]
    assert set(module["against_previous"]) == set(base["measures"])
    assert report["complete"] is True
    assert report["setting"]["dataset"] == "fairytaleqa, split val"
    assert report["setting"]["documents"].startswith("2 with 3 questions")
    assert report["setting"]["extractor"] == report["setting"]["worn"] == "none"
    assert report["setting"]["recipes"] == {"mixed": recipes(house / "cache")["mixed"]}
    questions = [json.loads(line) for line in (house / "out" / "questions.jsonl").read_text().splitlines()]
    assert len(questions) == 3 * len(labels)
    assert (house / "out" / "figure1.png").read_bytes().startswith(b"\x89PNG")
    for module_, names in ((answers, ("generate_on", "score_on")), (artefacts, ("train",))):
        for name in names:
            monkeypatch.setattr(module_, name, refuse)
    assert table(house)[1] == report


def recipes(cache: Path) -> dict[str, Any]:
    """By objective, as the manifests of the modules in a cache have them."""
    manifests = [json.loads(file.read_text()) for file in (cache / "modules").glob("*/attempt-1/artefact/manifest.json")]
    return {manifest["objective"]: manifest["recipe"] for manifest in manifests}


def test_a_table_that_is_stopped_leaves_the_rows_that_are_done(house: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*arguments: Any) -> None:
        report = json.loads((tmp_path / "out" / "table.json").read_text())
        assert [line["row"] for line in report["lines"]] == ["base"], "it is there while the next row is made"
        raise KeyboardInterrupt

    monkeypatch.setattr(artefacts, "train", stop)
    options = {"rows": "base,KM_mixed", "out": tmp_path / "out", "cache": tmp_path / "cache"}
    with pytest.raises(KeyboardInterrupt):
        table(house, **options)
    report = json.loads((tmp_path / "out" / "table.json").read_text())
    assert (report["complete"], len(report["lines"])) == (False, 1)
    assert set(report["setting"]["recipes"]) == {"mixed"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES
    monkeypatch.undo()
    report = table(house, **options)[1]
    assert (report["complete"], [line["row"] for line in report["lines"]]) == (True, ["base", "KM_mixed"])


def test_an_objective_may_have_fields_of_its_own(house: Path) -> None:
    recipe = {**TWO_STEPS, "lm": {"max_steps": 1, "evaluate_every": 1}}
    options = {"cache": house / "own-fields", "out": house / "own-fields-out"}
    _, report = table(house, rows="KM_mixed,KM_LM", recipe=json.dumps(recipe), **options)
    assert report["setting"]["recipes"] == recipes(house / "own-fields")
    manifests = [json.loads(file.read_text()) for file in (house / "own-fields" / "modules").glob("*/attempt-1/artefact/manifest.json")]
    assert (
        sorted((manifest["objective"], manifest["recipe"]["max_steps"]) for manifest in manifests) == [("lm", 1)] * 2 + [("mixed", 2)] * 2
    )
    for wrong in (3, {"steps": 3}):
        with pytest.raises(InvalidInput, match=r"lm in the recipe holds|steps"):
            table(house, rows="KM_LM", recipe=json.dumps({"lm": wrong}), **options)


def test_modules_are_trained_side_by_side(house: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artefacts, "train", refuse)  # in this process
    options = {"rows": "KM_mixed,KM_LM", "out": house / "apart", "cache": house / "apart-cache", "trainers": 2, "device": "cpu"}
    output = StringIO()
    run(arguments(house, **options), Console(file=output, width=220), fake_embedder)
    assert "KM_LM" in output.getvalue()
    assert len(list((house / "apart-cache" / "modules").glob("*/ref.json"))) == 4


def test_what_a_training_apart_raises_is_raised_here(house: Path) -> None:
    recipe = json.dumps({**TWO_STEPS, "teacher_cache_bytes": 1})
    with pytest.raises(InvalidInput, match="teacher_cache_bytes"):
        run(
            arguments(house, rows="KM_mixed", recipe=recipe, cache=house / "failing", out=house / "out", trainers=2),
            Console(file=StringIO()),
            fake_embedder,
        )


def test_refusals_of_own_and_of_foreign_questions(house: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that answers its first question and declines the others."""

    def answer(reader: Any, requests: Any, on_finished: Callable[[int, str], None]) -> None:
        for number in range(len(requests)):
            on_finished(number, "The document does not say." if number else "A fox.")

    monkeypatch.setattr(answers.EngineReader, "generate", answer)
    output = StringIO()
    measured = refusals.run(
        arguments(house, rows="RAG", passages="1", out=house / "refusal", cache=house / "refused"),
        Console(file=output),
        lambda source: FakeEmbedder(),
    )
    [row] = measured
    assert (row.row, row.extractor, row.modules, row.questions) == ("RAG, k=1", "none", {}, 3)
    assert row.own == row.foreign == pytest.approx(2 / 3)
    written = json.loads((house / "refusal" / "refusal.json").read_text())
    assert written["rows"] == [asdict(row)]
    assert written["setting"]["passages"].startswith("at most ")
    assert "66.7%" in output.getvalue()


def test_refusals_name_what_was_worn_by_its_digests(house: Path, extractor: Path) -> None:
    options = {"rows": "KE,KM_mixed+KE,KM_other+KE", "extractor": extractor, "out": house / "refusal"}
    measured = refusals.run(arguments(house, **options), Console(file=StringIO()), lambda source: FakeEmbedder())
    ke, own, other = measured
    ref = extractor_of(extractor)
    assert ref.composition is not None
    assert ke.extractor == own.extractor == f"extractor, lora {ref.digest[:16]}, composition {ref.composition[:16]}"
    assert ke.modules == {}
    assert set(own.modules) == {"fox", "hen"}
    assert own.modules["fox"] == other.modules["hen"] != own.modules["hen"] == other.modules["fox"]
    written = json.loads((house / "refusal" / "refusal.json").read_text())
    assert written["rows"] == [asdict(row) for row in measured]
    assert written["setting"]["extractor"] == ke.extractor
    assert list(written["setting"]["recipes"]) == ["mixed"]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"documents": 1}, "at least two documents"),
        ({"rows": "base,KE", "extractor": "none"}, "--extractor"),
        ({"rows": "KM_mixed", "preset": "slow"}, "unknown preset"),
    ],
)
def test_refusals_that_cannot_be_measured_are_explained_first(
    house: Path, options: dict[str, Any], problem: str, nothing_begins: None
) -> None:
    with pytest.raises((ValueError, InvalidInput), match=problem):
        refusals.run(arguments(house, **options), Console(file=StringIO()), lambda source: FakeEmbedder())


def test_another_documents_questions_need_room_too(house: Path, tmp_path: Path, nothing_begins: None) -> None:
    """The long document's own question is short."""
    write_story(tmp_path, "val", "long", ["A fox ran. " * 150], [("What ran?", "a fox", "")])
    write_story(tmp_path, "val", "short", ["A hen sat."], [("What sat? " * 20, "a hen", "")])
    with pytest.raises(ValueError, match=r"row ICL needs \d+ tokens for a question about long"):
        refusals.run(arguments(house, data=tmp_path, rows="ICL"), Console(file=StringIO()), lambda source: FakeEmbedder())


@pytest.mark.parametrize(
    ("answer", "declined"),
    [("The document does not say.", True), (" the document does not say who", True), ("The document says so.", False), ("", False)],
)
def test_what_declines(answer: str, declined: bool) -> None:
    assert refusals.declines(answer) is declined


def test_rows_that_read_the_whole_document(house: Path) -> None:
    _, report = table(house, rows="ICL,KV_L2", kv_drop=0.25, out=house / "whole")
    whole, compressed = report["lines"]
    assert whole["prompt_tokens"] > compressed["prompt_tokens"] > 0.7 * whole["prompt_tokens"]


def test_multiple_choice_is_scored_by_option_and_by_letter(house: Path, tmp_path: Path) -> None:
    question = {"question": "What flew?", "options": ["a cat", "a dog", "a hen", "a fox"], "gold_label": 3, "difficult": 0}
    data = tmp_path / "QuALITY.v1.0.1.dev"
    questions = [question, {**question, "difficult": 1}]
    data.write_text(json.dumps({"article_id": "1", "article": "A hen flew over the barn.", "questions": questions}) + "\n")
    text, report = table(house, dataset="quality", data=data, rows="base,ICL", out=tmp_path / "out")
    for line in report["lines"]:
        assert list(line["measures"]) == ["accuracy", "accuracy_hard", "letter", "gold_nll", "gold_nll_eos"]
        assert line["measures"]["accuracy"]["mean"] == line["measures"]["accuracy_hard"]["mean"] in (0.0, 100.0)
        assert [len(line["values"][name][0]) for name in ("accuracy", "accuracy_hard")] == [2, 1]
    assert "accuracy_hard" in text


def test_the_extractor_that_ships_for_the_base_is_worn_where_none_is_named(
    house: Path, extractor: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def shipped(fingerprint: str) -> list[Path]:
        asked.append(fingerprint)
        return [extractor]

    monkeypatch.setattr("worker.evaluation.run.shipped_for", shipped)
    _, report = table(house, rows="KE,RAG+KE@1", out=house / "shipped")
    digest = extractor_of(extractor).digest
    assert report["setting"]["extractor"] == report["setting"]["worn"]
    assert f"extractor, lora {digest[:16]}" in report["setting"]["extractor"]
    assert asked == [json.loads((extractor / "manifest.json").read_text())["base_fingerprint"]]
    assert table(house, rows="KE,RAG+KE@1", extractor=extractor, out=house / "named")[1] == report
    assert table(house, rows="base", out=house / "bare")[1]["setting"]["extractor"] == "none"
    with pytest.raises(ArtefactUnavailable, match="--extractor"):
        table(house, rows="base,KE", extractor="none", out=house / "without")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"rows": "base,KM_mixed,KE"}, "--extractor"),
        ({"rows": "base,KM_mixed(worn)+KE", "extractor": "none"}, "--extractor"),
        ({"rows": "nothing"}, "unknown row 'nothing'"),
        ({"rows": ","}, "no rows"),
        ({"documents": 3}, "holds 2 documents"),
        ({"rows": "KM_other+KE", "documents": 1}, "--extractor"),
        ({"rows": "base,KM_mixed", "preset": "slow"}, "unknown preset 'slow'"),
        ({"rows": "base,KM_mixed", "recipe": '{"speed": 3}'}, "speed"),
        ({"rows": "base,KE", "extractor": "absent"}, "holds no knowledge extractor"),
        ({"rows": "base,KM_mixed", "worn": "absent"}, "holds no knowledge extractor"),
        ({"out": Path(__file__)}, "cannot be made"),
    ],
)
def test_what_the_user_can_mend_is_explained_before_anything_begins(
    house: Path, tmp_path: Path, options: dict[str, Any], problem: str, nothing_begins: None
) -> None:
    with pytest.raises((ValueError, InvalidInput), match=problem):
        table(house, **{"cache": tmp_path / "cache", "out": tmp_path / "out", **options})
    assert not list((tmp_path / "out").glob("*"))


def test_a_document_beyond_the_bases_context_is_named(house: Path, tmp_path: Path, nothing_begins: None) -> None:
    write_story(tmp_path, "val", "long", ["A fox ran. " * 300], [("What ran?", "a fox", "")])
    with pytest.raises(ValueError, match=r"row ICL needs \d+ tokens for a question about long and the base model reads 2048"):
        table(house, data=tmp_path, rows="base,KM_mixed,ICL")


@pytest.mark.parametrize(
    "wrong", [{"passages": "0"}, {"passages": "few"}, {"documents": 0}, {"kv_drop": 1.0}, {"recipe": "[]"}, {"dataset": "squad"}]
)
def test_wrong_arguments_are_usage_errors(house: Path, wrong: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        arguments(house, **wrong)
    assert ended.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_the_commands_options_are_those_of_the_evaluation(house: Path) -> None:
    """`kmserve eval` passes all that it takes."""
    options: dict[str, Any] = {
        "split": "train",
        "documents": 2,
        "models_dir": house / "models",
        "device": "cpu",
        "dtype": "float32",
        "embedder": "all-minilm-l6-v2",
        "extractor": house / "ke",
        "worn": house / "worn",
        "preset": "paper",
        "kv_drop": 0.3,
        "trainers": 3,
        "seed": 5,
    }
    parsed = vars(arguments(house, **options))
    assert {name: parsed[name] for name in options} == options
    assert parsed["rows"] == ROWS.split(",")
    assert parsed["recipe"] == TWO_STEPS


def test_nothing_given_is_nothing_passed() -> None:
    given: Callable[..., list[str]] = command_line
    assert given({"rows": None, "passage_tokens": 64}) == ["--passage-tokens=64"]
