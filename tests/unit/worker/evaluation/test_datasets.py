from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.tiny_fairytaleqa import write_story
from worker.evaluation.datasets import load_documents
from worker.evaluation.documents import DatasetError


def test_stories_come_shortest_first_with_their_references(tmp_path: Path) -> None:
    write_story(tmp_path, "val", "long", ["Once there was a hen.", "It laid, and laid."], [("Who?", "a hen", "the hen")])
    write_story(tmp_path, "val", "short", ["A fox ran."], [("What ran?", "a fox", ""), ("Why?", "hunger", "  it was hungry ")])
    short, long = load_documents("fairytaleqa", tmp_path, "val", 2)
    assert (short.name, long.name) == ("short", "long")
    assert long.text == "Once there was a hen.\n\nIt laid, and laid."
    assert [question.references for question in short.questions] == [("a fox",), ("hunger", "it was hungry")]
    assert short.questions[1].gold == "hunger"
    assert [story.name for story in load_documents("fairytaleqa", tmp_path, "val", 1)] == ["short"]


def test_quoted_commas_line_ends_and_a_byte_order_mark(tmp_path: Path) -> None:
    write_story(tmp_path, "train", "odd", ['He said: "Go,\nnow".'], [("What, then?", "go, now", "")], encoding="utf-8-sig")
    (story,) = load_documents("fairytaleqa", tmp_path, "train", 1)
    assert story.text == 'He said: "Go,\nnow".'
    assert story.questions[0].text == "What, then?"


def test_questions_without_a_first_answer_are_left_out(tmp_path: Path) -> None:
    write_story(tmp_path, "val", "a", ["Text."], [("Who?", "", "someone"), ("What?", "this", "")])
    (story,) = load_documents("fairytaleqa", tmp_path, "val", 1)
    assert [question.text for question in story.questions] == ["What?"]


def test_too_few_stories_or_another_layout_are_explained(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="original layout"):
        load_documents("fairytaleqa", tmp_path, "val", 1)
    write_story(tmp_path, "val", "a", ["Text."], [("Who?", "me", "")])
    with pytest.raises(ValueError, match="holds 1 documents with questions in its split val, 2 are wanted"):
        load_documents("fairytaleqa", tmp_path, "val", 2)


def test_an_unknown_split_is_explained(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no split 'dev': use one of val, train, test"):
        load_documents("fairytaleqa", tmp_path, "dev")


def test_documents_without_questions_are_left_out(tmp_path: Path) -> None:
    write_story(tmp_path, "val", "a", ["Text."], [("Who?", "", "")])
    write_story(tmp_path, "val", "b", ["Longer text."], [("Who?", "me", "")])
    assert [document.name for document in load_documents("fairytaleqa", tmp_path)] == ["b"]


def test_a_malformed_csv_is_named_with_its_line(tmp_path: Path) -> None:
    write_story(tmp_path, "val", "a", ["Text\nof two lines."], [("Who?", "me", "")])
    story = next(tmp_path.rglob("a-story.csv"))
    story.write_text('section,text\n1,"one\ntwo"\n2,three,four\n')
    with pytest.raises(DatasetError, match=r"a-story\.csv, line 4: has 3 fields, the heading 2"):
        load_documents("fairytaleqa", tmp_path)
    story.write_text('section,text\n1,"never closed\n')
    with pytest.raises(DatasetError, match=r"a-story\.csv, line 2: is no CSV"):
        load_documents("fairytaleqa", tmp_path)
    story.write_text("section\n1\n")
    with pytest.raises(DatasetError, match="line 1: the heading lacks text"):
        load_documents("fairytaleqa", tmp_path)
    story.write_bytes(b"section,text\n1,\xff\n")
    with pytest.raises(DatasetError, match="is not UTF-8"):
        load_documents("fairytaleqa", tmp_path)


def test_a_story_without_its_questions_is_named(tmp_path: Path) -> None:
    write_story(tmp_path, "val", "a", ["Text."], [("Who?", "me", "")])
    next(tmp_path.rglob("a-questions.csv")).unlink()
    with pytest.raises(DatasetError, match=r"a-questions\.csv: cannot be read \(no such file or directory\)"):
        load_documents("fairytaleqa", tmp_path)
