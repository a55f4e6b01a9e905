"""What a trainer reads out of its spec."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from server.engine.request import ArtefactRef, Scope
from worker.reading import Nearest, artefact_ref, taught_documents

AXES = {"red": [1.0, 0.0], "blue": [0.0, 1.0], "What is red?": [1.0, 0.1], "What is blue?": [0.1, 1.0], "pink": [0.8, 0.3]}


class Axes:
    """In place of an embedding model; counts what it embeds."""

    name, dimension, max_tokens = "axes", 2, 8

    def __init__(self) -> None:
        self.embedded: list[str] = []

    def count(self, text: str) -> int:
        return 1

    def encode(self, texts: Sequence[str]) -> list[list[float]]:
        self.embedded += texts
        return [AXES[text] for text in texts]


def test_the_nearest_passages_come_best_last_and_are_embedded_once() -> None:
    axes = Axes()
    nearest = Nearest(["red", "blue", "pink"], lambda: axes)
    assert nearest("What is red?", 2) == ["pink", "red"]
    assert nearest("What is red?", 9) == ["blue", "pink", "red"]
    assert nearest("What is blue?", 1) == ["blue"]
    assert sorted(axes.embedded) == ["What is blue?", "What is red?", "blue", "pink", "red"]


def test_a_document_without_passages_loads_no_model() -> None:
    def never() -> Any:
        raise AssertionError

    assert Nearest([], never)("What is red?", 2) == ()


def test_artefacts_are_named_as_the_database_knows_them() -> None:
    values = {"digest": "d", "manifest_sha256": "m", "directory": "/x", "scope": "all", "wears": None}
    assert artefact_ref(values) == ArtefactRef(digest="d", manifest_sha256="m", directory=Path("/x"), scope=Scope.ALL)
    named = artefact_ref({**values, "composition": "c"})
    assert named is not None
    assert named.composition == "c"
    assert artefact_ref(None) is None


def test_documents_without_a_question_are_left_out() -> None:
    document = {"title": "Colours", "passages": ["red", "blue"], "module": None}
    spec = {
        "documents": [{**document, "document_id": "a"}, {**document, "document_id": "b"}],
        "questions": [{"document_id": "b", "question": "What is red?", "answers": ["a colour", "red"]}],
    }
    (taught,) = taught_documents(spec, Axes)
    assert (taught.name, taught.module) == ("Colours", None)
    assert [(asked.question, asked.answers) for asked in taught.questions] == [("What is red?", ("a colour", "red"))]
    assert taught.passages("What is red?", 1) == ["red"]
