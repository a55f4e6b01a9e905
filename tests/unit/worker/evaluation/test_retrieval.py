from __future__ import annotations

from tests.support.embeddings import FakeEmbedder, count_words
from worker.evaluation.retrieval import Retriever

TEXT = "The bridge is painted green.\n\nThe tower has eleven bells.\n\nThe mill grinds barley."


def retriever(tokens: int = 8) -> Retriever:
    return Retriever(TEXT, FakeEmbedder(), count_words, tokens)


def test_passages_are_no_longer_than_asked() -> None:
    assert retriever().passages == TEXT.split("\n\n")
    assert len(retriever(64).passages) == 1


def test_the_best_passage_stands_last() -> None:
    found = retriever().best("How many bells has the tower?", 2)
    assert len(found) == 2
    assert found[-1] == "The tower has eleven bells."


def test_more_passages_than_there_are_is_all_of_them_and_none_is_none() -> None:
    assert sorted(retriever().best("What is green?", 16)) == sorted(TEXT.split("\n\n"))
    assert retriever().best("What is green?", 0) == []
