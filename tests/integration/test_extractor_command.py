"""`python -m worker.extractor` on tiny stories, and the table's rows that wear what it made."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from server.engine.request import ArtefactRef
from tests.support.base_files import save, stretched
from tests.support.embeddings import FakeEmbedder
from tests.support.tiny_fairytaleqa import write_story
from tests.support.tiny_training import TWO_STEPS
from worker.evaluation.arguments import parse_arguments as evaluation_arguments
from worker.evaluation.run import run as evaluate
from worker.extractor.__main__ import main
from worker.extractor.arguments import parse_arguments
from worker.extractor.run import run

QUICK = {"rank": 4, "max_steps": 2, "batch_size": 2, "micro_batch": 2, "evaluate_every": 2, "gate_improvement": -1.0}
WEIGHTS = {**QUICK, "learn": "weights"}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("house")
    stretched(save(folder / "base"))
    fox = ["A grey fox ran over the old bridge at night.", "It slept in the mill until the morning came. Then it ate two plums."]
    hen = ["A red hen sat on a brown egg in the barn.", "Nobody else had ever seen so large an egg. She was proud of it."]
    for split in ("train", "val"):
        write_story(folder, split, "fox", fox, [("What ran?", "a fox", "a grey fox"), ("Where did it sleep?", "in the mill", "")])
        write_story(folder, split, "hen", hen, [("What sat on an egg?", "a hen", "")])
    write_story(folder, "train", "long", [fox[0]] * 40, [("What ran?", "a fox", "")] * 9)
    return folder


def given(house: Path, **options: Any) -> list[str]:
    common = {"dataset": "fairytaleqa", "data": house, "base": house / "base", "cache": house / "cache", "passage_tokens": 48}
    named = {**common, **options}
    return [word for name, value in named.items() for word in (f"--{name.replace('_', '-')}", str(value))]


def trained(house: Path, out: str, recipe: dict[str, Any], **options: Any) -> ArtefactRef:
    words = given(house, out=house / out, recipe=json.dumps(recipe), most_tokens=400, module_recipe=json.dumps(TWO_STEPS), **options)
    return run(parse_arguments(words), Console(file=StringIO()), lambda source: FakeEmbedder())


@pytest.fixture(scope="module")
def reader(house: Path) -> ArtefactRef:
    return trained(house, "reader", QUICK)


def test_a_reader_then_worn_modules_then_the_weights_over_them(house: Path, reader: ArtefactRef) -> None:
    weights = trained(house, "weights", WEIGHTS, modules="worn", start=reader.directory)
    assert weights.digest == reader.digest
    assert weights.composition != reader.composition
    manifest = json.loads((weights.directory / "manifest.json").read_text())
    assert (manifest["data"]["documents"], manifest["data"]["modules"]) == (2, 2), "the long story is left out"
    assert manifest["start"] == {"lora": reader.digest, "composition": reader.composition}
    assert "start" not in json.loads((reader.directory / "manifest.json").read_text())
    gate = json.loads((house / "weights" / "gate.json").read_text())
    assert gate["weights"]["w_km"]["unlearned"] >= 0


def refused(words: list[str]) -> str:
    """What the command says as it ends."""
    with pytest.raises(SystemExit) as ended:
        main(words)
    return str(ended.value.code)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"rank": 8}, "starts from has rank 4 and the recipe has rank 8"),
        ({"alpha": 4.0}, "starts from has alpha 16 and the recipe has alpha 4"),
        ({"scope": "answer"}, "starts from has scope `all` and the recipe has scope `answer`"),
    ],
)
def test_what_the_start_does_not_have_is_told_before_the_base_model_is_looked_for(
    house: Path, reader: ArtefactRef, recipe: dict[str, Any], message: str
) -> None:
    words = given(house, base=house / "absent", start=reader.directory, recipe=json.dumps(recipe), out=house / "refused")
    assert message in refused(words)
    assert not (house / "refused").exists()


def test_a_recipe_that_names_no_rank_takes_the_starts(house: Path, reader: ArtefactRef) -> None:
    steps = {name: value for name, value in QUICK.items() if name != "rank"}
    manifest = json.loads((trained(house, "continued", steps, start=reader.directory).directory / "manifest.json").read_text())
    assert (manifest["rank"], manifest["recipe"]["rank"]) == (4, 4)


def test_weights_alone_need_a_start(house: Path) -> None:
    assert "name it with --start" in refused(given(house, base=house / "absent", recipe=json.dumps(WEIGHTS), out=house / "refused"))


def test_a_command_that_is_interrupted_says_that_it_goes_on(
    house: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("worker.extractor.run.base_of", interrupted)
    with pytest.raises(SystemExit) as ended:
        main(given(house, out=house / "interrupted"))
    assert ended.value.code == 130
    assert capsys.readouterr().err.splitlines() == ["stopped; the same command goes on from here"]


def test_the_table_wears_it(house: Path, reader: ArtefactRef) -> None:
    rows = "base,KE,KM_other+KE,KM_mixed+KE,KM_mixed(worn)+KE,ICL+KE,RAG+KM+KE"
    words = given(house, rows=rows, passages="1", recipe=json.dumps(TWO_STEPS), out=house / "out", extractor=reader.directory)
    evaluate(evaluation_arguments(words), Console(file=StringIO(), width=200), lambda source: FakeEmbedder())
    losses: dict[str, list[float]] = {}
    for line in (house / "out" / "questions.jsonl").read_text().splitlines():
        question = json.loads(line)
        losses.setdefault(question["row"], []).append(question["values"]["gold_nll"])
    assert list(losses) == rows.split(",")
    assert len(set(map(tuple, losses.values()))) == len(losses), "each row wears something else"


def test_extractors_over_bare_modules_are_told_what_to_do(house: Path, reader: ArtefactRef, capsys: pytest.CaptureFixture[str]) -> None:
    words = given(house, out=house / "wrong", recipe=json.dumps(QUICK), most_tokens=400, module_recipe=json.dumps(TWO_STEPS))
    assert "2 documents of split train have at most 400 tokens, 3 are wanted" in refused([*words, "--documents", "3"])
    for more, said in (
        (["--modules", "worn"], "--modules worn needs --start"),
        (["--modules", "nonsense"], "invalid choice: 'nonsense'"),
        (["--documents", "1"], "--documents must be at least 2"),
        (["--documents", "-5"], "'-5' is no whole number from 1 on"),
        (["--most-tokens", "0"], "'0' is no whole number from 1 on"),
    ):
        with pytest.raises(SystemExit, match="2"):
            parse_arguments([*words, *more])
        assert said in capsys.readouterr().err


def test_modules_that_cannot_be_learned_over_are_not_trained_first(house: Path, reader: ArtefactRef) -> None:
    words = given(house, base=house / "absent", out=house / "refused", start=reader.directory)
    worn = [*words, "--modules", "worn", "--recipe", json.dumps({**QUICK, "learn": "all"})]
    assert 'let --recipe say \'{"learn": "weights"}\'' in refused(worn)
    scoped = [*words, "--modules", "mixed", "--recipe", json.dumps(QUICK), "--module-recipe", '{"scope": "answer"}']
    assert "the modules would have scope answer and the extractor all" in refused(scoped)
    assert not (house / "refused").exists()


def test_a_folder_that_cannot_be_made_is_said(house: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "cannot be made" in refused(given(house, out=tmp_path / "file" / "out"))
    assert "cannot be made" in refused(given(house, out=tmp_path / "out", cache=tmp_path / "file" / "cache"))
