from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from worker.evaluation.datasets import load_documents
from worker.evaluation.documents import DatasetError, Document

QUESTION = {"question": "Who flew? ", "options": ["a cat", "a dog ", "a hen", "a fox"], "gold_label": 3, "difficult": 1}


def written(folder: Path, *lines: Any, name: str = "QuALITY.v1.0.1.dev") -> Path:
    path = folder / name
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return path


def item(article: str = "A hen flew.", article_id: str = "1", questions: Any = (QUESTION,)) -> dict[str, Any]:
    return {"article_id": article_id, "article": article, "questions": questions}


def load(path: Path) -> list[Document]:
    return load_documents("quality", path)


def test_options_and_the_label_counted_from_one(tmp_path: Path) -> None:
    written(tmp_path, item())
    (document,) = load(tmp_path)
    (question,) = document.questions
    assert (document.name, document.text, question.text) == ("1", "A hen flew.", "Who flew?")
    assert question.options == ("a cat", "a dog", "a hen", "a fox")
    assert (question.label, question.gold, question.references, question.difficult) == (2, "a hen", ("a hen",), True)


def test_articles_in_html_are_read_as_text(tmp_path: Path) -> None:
    written(tmp_path, item("<html><body><p>A <b>hen</b> flew.</p><p>It fell &amp; sang.</p></body></html>"))
    assert load(tmp_path)[0].text == "A hen flew.\n\nIt fell & sang."


def test_a_less_than_sign_is_no_html(tmp_path: Path) -> None:
    written(tmp_path, item("2 < 3 and 4 > 3."))
    assert load(tmp_path)[0].text == "2 < 3 and 4 > 3."


def test_lines_about_one_article_are_one_document(tmp_path: Path) -> None:
    written(tmp_path, item(), item("Another, longer one.", "2"), item(questions=[{**QUESTION, "question": "And who sat?"}]))
    first, second = load(tmp_path)
    assert [question.text for question in first.questions] == ["Who flew?", "And who sat?"]
    assert (second.name, len(second.questions)) == ("2", 1)


def test_the_stripped_file_comes_first_and_a_file_may_be_named(tmp_path: Path) -> None:
    html = written(tmp_path, item(article_id="html"))
    written(tmp_path, item(article_id="stripped"), name="QuALITY.v1.0.1.htmlstripped.dev")
    assert load(tmp_path)[0].name == "stripped"
    assert load(html)[0].name == "html"


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "is no JSON"),
        ([1], "is not an object"),
        ({"article": "text"}, "lacks 'questions'"),
        (item(questions=[{**QUESTION, "gold_label": 5}]), "a `gold_label` from 1 to 4"),
        (item(questions=[{**QUESTION, "options": ["one"]}]), "must have 4 options"),
        (item(questions=[{**QUESTION, "options": [1, 2, 3, 4]}]), "its `options` texts"),
        (item(questions=[{"question": "Who?", "options": ["a"] * 4}]), "lacks 'gold_label'"),
        (item(questions=[{**QUESTION, "options": ["a", "b", "c", " "]}]), "an option is empty"),
        (item(questions=["Who?"]), "a question is not an object"),
        (item(questions="Who?"), "`questions` a list"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, line: Any, problem: str) -> None:
    written(tmp_path, item(), "", line)
    with pytest.raises(DatasetError, match=r"QuALITY\.v1\.0\.1\.dev, line 3: ") as caught:
        load(tmp_path)
    assert problem in str(caught.value)


def test_a_folder_without_the_split_says_what_it_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"no file QuALITY\.v1\.0\.1\.htmlstripped\.dev"):
        load(tmp_path)
