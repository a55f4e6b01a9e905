from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from server.engine.base_model import BaseModel
from server.engine.batch_engine import BatchEngine
from server.engine.options import EngineOptions
from server.engine.prompt import Prompt
from server.engine.request import ArtefactRef, EngineRequest, Sampling, Scope
from server.errors import ContextLimit
from tests.support.tiny_models import tiny_base, tiny_prompt, tiny_request
from worker.evaluation import answers
from worker.evaluation.answers import Ask, EngineReader, Logprobs, Remembered, Results

MODULE = ArtefactRef(digest="km", manifest_sha256="", directory=Path("km"))
EXTRACTOR = ArtefactRef(digest="ke", manifest_sha256="", directory=Path("ke"), composition="weights")


class Scribe:
    """Answers with the first token of the prompt, backwards in order; `until` ends it after so many, as a kill would."""

    def __init__(self, name: str = "scribe", until: int = 1000) -> None:
        self.name = name
        self.asked: list[Any] = []
        self._until = until

    def prompt_tokens(self, prompt: Prompt) -> int:
        return len(prompt)

    def session(self) -> AbstractContextManager[None]:
        return nullcontext()

    def generate(self, requests: Sequence[EngineRequest], on_finished: Callable[[int, str], None]) -> None:
        for index in reversed(range(len(requests))):
            self._count()
            self.asked.append(requests[index])
            on_finished(index, f"answer {requests[index].prompt.adapted[0]}")

    def score(self, asks: Sequence[Ask], on_finished: Callable[[int, Logprobs], None]) -> None:
        for index, (_, continuations) in enumerate(asks):
            self._count()
            self.asked.append(asks[index])
            on_finished(index, [tuple(-float(token) for token in ids) for ids in continuations])

    def _count(self) -> None:
        if len(self.asked) == self._until:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return tiny_base()


def remembered(base: BaseModel, folder: Path) -> Remembered:
    return Remembered(base, Results(folder / "answers.jsonl"))


def requests(count: int) -> list[EngineRequest]:
    return [tiny_request(str(n), Prompt(bare=(), adapted=(n, n + 1))) for n in range(count)]


def silent(done: int) -> None:
    """Nobody listens."""


def test_answers_come_in_order_and_only_once(base: BaseModel, tmp_path: Path) -> None:
    scribe, heard = Scribe(), list[int]()
    mine = remembered(base, tmp_path)
    assert mine.generate(scribe, requests(3), heard.append) == ["answer 0", "answer 1", "answer 2"]
    assert heard == [0, 1, 2, 3]
    assert mine.generate(scribe, requests(4), heard.append)[3] == "answer 3"
    assert len(scribe.asked) == 4


def test_another_run_goes_on_where_one_was_killed(base: BaseModel, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        remembered(base, tmp_path).generate(Scribe(until=2), requests(5), silent)
    scribe = Scribe()
    assert remembered(base, tmp_path).generate(scribe, requests(5), silent) == [f"answer {n}" for n in range(5)]
    assert len(scribe.asked) == 3


def test_a_torn_line_is_computed_again(base: BaseModel, tmp_path: Path) -> None:
    remembered(base, tmp_path).generate(Scribe(), requests(2), silent)
    file = tmp_path / "answers.jsonl"
    file.write_text(file.read_text()[:-3])
    scribe = Scribe()
    for _ in range(2):
        assert remembered(base, tmp_path).generate(scribe, requests(2), silent) == ["answer 0", "answer 1"]
    assert len(scribe.asked) == 1


def test_equal_requests_are_computed_once(base: BaseModel, tmp_path: Path) -> None:
    scribe = Scribe()
    assert remembered(base, tmp_path).generate(scribe, requests(1) * 3, silent) == ["answer 0"] * 3
    assert len(scribe.asked) == 1


def test_scores_are_remembered_too(base: BaseModel, tmp_path: Path) -> None:
    asks: list[Ask] = [(request, [(1, 2), ()]) for request in requests(2)]
    assert remembered(base, tmp_path).score(Scribe(), asks, silent) == [[(-1.0, -2.0), ()]] * 2
    scribe = Scribe()
    assert remembered(base, tmp_path).score(scribe, asks, silent) == [[(-1.0, -2.0), ()]] * 2
    assert scribe.asked == []
    remembered(base, tmp_path).score(scribe, [(asks[0][0], [(1, 3)])], silent)
    assert len(scribe.asked) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": Prompt(bare=(), adapted=(0, 2))},
        {"prompt": Prompt(bare=(0,), adapted=(1,))},
        {"module": MODULE},
        {"module": replace(MODULE, scope=Scope.ANSWER)},
        {"extractor": EXTRACTOR},
        {"extractor": replace(EXTRACTOR, composition="others")},
        {"sampling": Sampling(max_tokens=9)},
    ],
)
def test_whatever_an_answer_depends_on_makes_it_another(base: BaseModel, tmp_path: Path, change: dict[str, Any]) -> None:
    scribe, mine = Scribe(), remembered(base, tmp_path)
    before = [tiny_request("0", Prompt(bare=(), adapted=(0, 1))), tiny_request("1", Prompt(bare=(), adapted=(0, 1)), MODULE, EXTRACTOR)]
    mine.generate(scribe, before, silent)
    mine.generate(scribe, [replace(before[0], **change)], silent)
    assert len(scribe.asked) == 3


def test_another_reader_or_base_answers_anew(base: BaseModel, tmp_path: Path) -> None:
    mine = remembered(base, tmp_path)
    mine.generate(Scribe(), requests(1), silent)
    others = [(mine, Scribe("other")), (remembered(BaseModel(**{**base.__dict__, "fingerprint": "1" * 64}), tmp_path), Scribe())]
    for remembering, scribe in others:
        remembering.generate(scribe, requests(1), silent)
        assert len(scribe.asked) == 1


def test_the_name_of_a_request_and_where_an_artefact_lies_make_no_difference(base: BaseModel, tmp_path: Path) -> None:
    scribe, mine = Scribe(), remembered(base, tmp_path)
    prompt = Prompt(bare=(), adapted=(0, 1))
    mine.generate(scribe, [tiny_request("0", prompt, MODULE)], silent)
    mine.generate(scribe, [tiny_request("1", prompt, replace(MODULE, directory=Path("elsewhere")))], silent)
    assert len(scribe.asked) == 1


def test_the_engine_reads_as_a_library(base: BaseModel, tmp_path: Path) -> None:
    reader, mine = EngineReader(base, EngineOptions(max_batch=2)), remembered(base, tmp_path)
    asked = [tiny_request(str(n), tiny_prompt(n)) for n in range(3)]
    with reader.session():
        texts = mine.generate(reader, asked, silent)
        scores = mine.score(reader, [(request, [(65, 66)]) for request in asked], silent)
        assert remembered(base, tmp_path).score(reader, [(request, [(65, 66)]) for request in asked], silent) == scores
    assert len(texts) == 3
    assert all(len(score[0]) == 2 and max(score[0]) < 0 for score in scores)


def test_within_a_session_a_prompt_is_read_once(base: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    engines: list[BatchEngine] = []

    def started(*arguments: Any) -> BatchEngine:
        engines.append(BatchEngine(*arguments))
        return engines[-1]

    monkeypatch.setattr(answers, "BatchEngine", started)
    reader, hits = EngineReader(base, EngineOptions(block_tokens=8)), []
    asked = [tiny_request(str(n), tiny_prompt(n, bare=20, adapted=20)) for n in range(3)]
    for _ in range(2):
        with reader.session():
            reader.generate(asked, lambda index, text: None)
            reader.score([(request, [(65, 66)]) for request in asked], lambda index, scores: None)
            hits.append(engines[-1].stats()["prefix_hit_tokens"])
    assert hits == [3 * 32] * 2, "whole blocks of 40 tokens, but for the one that the last token is in"
    assert len(engines) == 2


def test_a_session_that_fails_leaves_the_model_as_it_was(base: BaseModel) -> None:
    reader = EngineReader(base, EngineOptions())
    with pytest.raises(ContextLimit), reader.session():
        reader.generate([tiny_request("1", tiny_prompt(1), max_tokens=10_000)], lambda index, text: None)
    with reader.session():
        reader.generate([tiny_request("1", tiny_prompt(1))], lambda index, text: None)
