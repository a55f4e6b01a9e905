from __future__ import annotations

from pathlib import Path

import pytest

from worker.evaluation.datasets import load_documents
from worker.evaluation.documents import DatasetError, Document

DOCUMENTS = "document_id,set,kind\nfox,valid,movie\nhen,train,gutenberg\n"
PAIRS = (
    "document_id,set,question,answer1,answer2\n"
    'fox,valid,"Who, then, ran?",A fox,The fox \nfox,valid,Why?,Hunger,\nfox,valid,When?,,\nhen,train,Who sat?,A hen,She\n'
)


def written(folder: Path, documents: str = DOCUMENTS, pairs: str = PAIRS) -> Path:
    (folder / "documents.csv").write_text(documents)
    (folder / "qaps.csv").write_text(pairs)
    (folder / "stories").mkdir(exist_ok=True)
    (folder / "stories" / "fox.txt").write_text("A fox ran.\n")
    return folder


def load(data: Path, split: str | None = None) -> list[Document]:
    return load_documents("narrativeqa", data, split)


def test_a_set_with_both_references(tmp_path: Path) -> None:
    (document,) = load(written(tmp_path))
    assert (document.name, document.text) == ("fox", "A fox ran.")
    assert [(question.text, question.references) for question in document.questions] == [
        ("Who, then, ran?", ("A fox", "The fox")),
        ("Why?", ("Hunger",)),
    ]
    assert document.questions[0].gold == "A fox"


def test_stories_where_the_datasets_script_puts_them_in_whatever_encoding(tmp_path: Path) -> None:
    (written(tmp_path) / "tmp").mkdir()
    page = '<html><head><meta charset="latin-1"></head><body><p>The hen went to the café, and then to the other café.</p></body></html>'
    (tmp_path / "tmp" / "hen.content").write_bytes(page.encode("latin-1"))
    assert load(tmp_path, "train")[0].text == "The hen went to the café, and then to the other café."


def test_a_missing_story_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"hen\.txt: is not there"):
        load(written(tmp_path), "train")


def test_a_question_about_no_document_is_named_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"qaps\.csv, line 2: documents\.csv has no document ox in the set valid"):
        load(written(tmp_path, pairs="document_id,set,question,answer1,answer2\nox,valid,Who?,An ox,\n"))


def test_a_heading_without_a_column_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"qaps\.csv, line 1: the heading lacks answer2"):
        load(written(tmp_path, pairs="document_id,set,question,answer1\n"))
