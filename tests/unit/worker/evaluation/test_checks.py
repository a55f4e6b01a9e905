"""What is said before the first training: on a tiny base, where nothing may be trained or answered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from server.engine.base_model import BaseModel
from server.engine.request import ArtefactRef, Scope
from server.errors import InvalidInput
from server.modules.artefact import write_artefact
from tests.support.tiny_models import tiny_artefact, tiny_base
from worker.evaluation import artefacts
from worker.evaluation.answers import Remembered, Results
from worker.evaluation.artefacts import ArtefactUnavailable, TrainedArtefacts
from worker.evaluation.checks import require_possible, require_room
from worker.evaluation.documents import Document, Question
from worker.evaluation.rows import lines_of
from worker.evaluation.runner import Setting

FOX = Document(name="fox", text="A fox ran.", questions=(Question(text="What ran?", gold="a fox", references=("a fox",)),))
HEN = replace(FOX, name="hen", text="A hen sat.")


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return tiny_base()


@pytest.fixture
def made(base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Setting]:
    """A setting of which `documents`, `base`, and what its artefacts are made with may be changed."""
    monkeypatch.setattr(artefacts, "train", lambda *arguments: pytest.fail("nothing was to be trained"))

    def retriever(document: Document) -> Callable[[str, int], Sequence[str]]:
        return lambda question, k: [document.text] * k

    def make(documents: Sequence[Document] = (FOX, HEN), base: BaseModel = base, retriever: Any = retriever, **options: Any) -> Setting:
        options = {"preset": "quick", "overrides": {}, "seed": 0, "retriever": retriever, "passages": "", "on_progress": unheard, **options}
        return Setting(
            base=base,
            documents=documents,
            artefacts=TrainedArtefacts(base, tmp_path, **options),
            retriever=retriever,
            readers=lambda context: pytest.fail("nothing was to be read"),
            remembered=Remembered(base, Results(tmp_path / "answers.jsonl")),
            on_progress=unheard,
        )

    return make


def unheard(doing: str, done: int, total: int) -> None:
    pass


def written(folder: Path, base: BaseModel, *, extractor: bool = True, fingerprint: str | None = None, **shape: Any) -> ArtefactRef:
    artefact = tiny_artefact(base, 1, extractor=extractor, **shape)
    manifest = replace(artefact.manifest, base_fingerprint=fingerprint or base.fingerprint)
    return write_artefact(folder, a=artefact.a, b=artefact.b, manifest=manifest, base_model_name="tiny", composition=artefact.composition)


def test_what_can_be_done_is_let_pass(base: BaseModel, made: Callable[..., Setting], tmp_path: Path) -> None:
    setting = made(extractor=written(tmp_path / "ke", base), worn_extractor=written(tmp_path / "worn", base, rank=8))
    require_possible(setting, lines_of(["all"], [1, 2]))


@pytest.mark.parametrize(
    ("rows", "options", "error", "problem"),
    [
        (["base", "KM_mixed", "RAG+KE"], {}, ArtefactUnavailable, "name its directory with --extractor"),
        (["KM_mixed(worn)+KE"], {}, ArtefactUnavailable, "name its directory with --extractor"),
        (["base", "KM_LM"], {"preset": "slow"}, InvalidInput, "unknown preset 'slow'"),
        (["KM_mixed", "KM_LM"], {"overrides": {"lm": {"speed": 3}}}, InvalidInput, "speed"),
        (["KM_mixed", "KM_LM"], {"overrides": {"lm": 3}}, InvalidInput, "lm in the recipe holds"),
        (["KM_mixed"], {"overrides": {"rank": 128}}, ValueError, "would have rank 128"),
        (["base"], {"documents": [replace(FOX, questions=(replace(FOX.questions[0], text="What " * 200),))]}, ValueError, "row base needs"),
        (["KM_mixed", "ICL"], {"documents": [FOX, replace(HEN, text="A hen sat. " * 50)]}, ValueError, "row ICL needs .* about hen"),
        (["RAG+KM@1:40"], {}, ValueError, "row RAG[+]KM, k=40 needs"),
    ],
)
def test_what_cannot_is_said(
    made: Callable[..., Setting], rows: list[str], options: dict[str, Any], error: type[Exception], problem: str
) -> None:
    with pytest.raises(error, match=problem):
        require_possible(made(**options), lines_of(rows, [1]))


def test_another_documents_module_needs_another_document(base: BaseModel, made: Callable[..., Setting], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs at least two documents"):
        require_possible(made([FOX], extractor=written(tmp_path / "ke", base)), lines_of(["KM_other+KE"], []))


@pytest.mark.parametrize(
    ("shape", "problem"), [({"fingerprint": "1" * 64}, "base fingerprint 1111"), ({"rank": 70}, "its rank 70 is above the limit of 64")]
)
def test_an_extractor_that_answers_cannot_wear_is_said(
    base: BaseModel, made: Callable[..., Setting], tmp_path: Path, shape: dict[str, Any], problem: str
) -> None:
    ref = written(tmp_path / "ke", base, **shape)
    with pytest.raises(ArtefactUnavailable, match=f"ke cannot be worn by tiny: .*{problem}"):
        require_possible(made(extractor=ref), lines_of(["base", "KE"], []))
    require_possible(made(extractor=ref), lines_of(["base"], []))


def test_a_damaged_one_is_said(base: BaseModel, made: Callable[..., Setting], tmp_path: Path) -> None:
    ref = written(tmp_path / "ke", base)
    (tmp_path / "ke" / "adapter_config.json").write_text("{}")
    with pytest.raises(ArtefactUnavailable, match="the adapter config"):
        require_possible(made(extractor=ref), lines_of(["RAG+KE"], [1]))


def test_one_that_modules_wear_must_be_of_the_base_and_of_their_scope(
    base: BaseModel, made: Callable[..., Setting], tmp_path: Path
) -> None:
    extractor, lines = written(tmp_path / "ke", base), lines_of(["base", "KM_mixed(worn)+KE"], [])
    other = written(tmp_path / "other", base, fingerprint="1" * 64)
    with pytest.raises(ArtefactUnavailable, match="other cannot be worn by tiny"):
        require_possible(made(extractor=extractor, worn_extractor=other), lines)
    answer = written(tmp_path / "answer", base, scope=Scope.ANSWER)
    with pytest.raises(ValueError, match="have scope all and would wear an extractor of scope answer"):
        require_possible(made(extractor=extractor, worn_extractor=answer), lines)
    require_possible(made(extractor=extractor, worn_extractor=answer, overrides={"scope": "answer"}), lines)
    require_possible(made(extractor=extractor, worn_extractor=other), lines_of(["KE"], []))


def test_an_embedding_model_that_is_not_there_is_missed_before_a_training(made: Callable[..., Setting]) -> None:
    """Its passages are asked for at a training's end."""

    def retriever(document: Document) -> Any:
        return lambda question, k: (_ for _ in ()).throw(InvalidInput("no such embedder"))

    require_possible(made(retriever=retriever), lines_of(["base"], []))
    with pytest.raises(InvalidInput, match="no such embedder"):
        require_possible(made(retriever=retriever), lines_of(["KM_mixed"], []))


def test_room_is_needed_for_options_too(made: Callable[..., Setting]) -> None:
    question = replace(FOX.questions[0], options=("a fox", "a hen " * 60), label=0)
    with pytest.raises(ValueError, match="row base needs"):
        require_room(made([replace(FOX, questions=(question,))]), lines_of(["base"], []))


def test_prompts_are_made_once_for_rows_that_wear_different_things(made: Callable[..., Setting]) -> None:
    heard: list[tuple[int, int]] = []
    setting = replace(made(), on_progress=lambda doing, done, total: heard.append((done, total)))
    require_room(setting, lines_of(["base", "KM_mixed", "RAG", "RAG+KM", "ICL"], [1, 2]))
    assert heard == [(0, 4), (1, 4), (2, 4), (3, 4)]
