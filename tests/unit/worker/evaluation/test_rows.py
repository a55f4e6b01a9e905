from __future__ import annotations

import pytest

from worker.evaluation.rows import ROWS, Context, Owner, lines_of


def test_every_row_of_the_paper_is_there() -> None:
    closed = "base KM_LM KM_PIT KM_DDCD KM_SDCD KM_mixed KE KM_other+KE KM_LM+KE KM_DDCD+KE KM_SDCD+KE KM_mixed+KE KM_mixed(worn)+KE"
    ones = ["KM_mixed+KE(ones)", "KM_mixed(worn)+KE(ones)"]
    assert list(ROWS) == [*closed.split(), *ones, "ICL", "ICL+KE", "KV_L2", "RAG", "RAG+KM", "RAG+KE", "RAG+KM+KE", "RAG+KM(worn)+KE"]


@pytest.mark.parametrize("name", ROWS)
def test_a_name_says_what_the_row_wears_and_reads(name: str) -> None:
    row = ROWS[name]
    assert ("KM" in name) == (row.objective is not None)
    assert ("KE" in name) == row.extractor
    assert ("other" in name) == (row.owner is Owner.OTHER)
    assert ("worn" in name) == row.worn
    assert ("ones" in name) == row.ones
    assert name.startswith("RAG") == (row.context is Context.PASSAGES)
    assert name.startswith("ICL") == (row.context is Context.DOCUMENT)


def test_a_row_with_passages_has_a_line_for_each_number() -> None:
    lines = lines_of(["RAG", "base"], [1, 4])
    assert [line.label for line in lines] == ["RAG, k=1", "RAG, k=4", "base"]


def test_a_row_may_have_numbers_of_its_own() -> None:
    lines = lines_of(["RAG", "RAG+KM@2:8", "base@3", "RAG@1"], [1, 4])
    assert [line.label for line in lines] == ["RAG, k=1", "RAG, k=4", "RAG+KM, k=2", "RAG+KM, k=8", "base"]


@pytest.mark.parametrize("numbers", ["", "0", "1:", "a", "1,2", "-1", "²"])
def test_numbers_that_are_none_are_told(numbers: str) -> None:
    with pytest.raises(ValueError, match="write them as RAG@1:2"):
        lines_of([f"RAG@{numbers}"], [1])


def test_all_rows_and_none_twice() -> None:
    lines = lines_of(["base", "all", "base"], [2])
    assert [line.row.name for line in lines] == list(ROWS)


def test_an_unknown_row_is_named_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="unknown row 'KM': use all, or some of base, KM_LM"):
        lines_of(["base", "KM"], [])
