"""The documents of `python -m benchmarks.training`."""

from __future__ import annotations

import pytest

from benchmarks.training import documents
from benchmarks.training.documents import LONG_TOKENS, PAGE_TOKENS, long_text, page, tokens_of
from server.engine.base_model import BaseModel
from tests.support.tiny_models import tiny_base


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return tiny_base()


def test_a_page_is_whole_paragraphs(base: BaseModel) -> None:
    text = page(base)
    assert 300 < tokens_of(base, text) <= PAGE_TOKENS
    assert f"{text}\n\n" in documents.PAGE.read_text(encoding="utf-8")


def test_a_long_document_is_as_long_as_it_says_and_repeats_nothing(base: BaseModel) -> None:
    text = long_text(base)
    assert LONG_TOKENS <= tokens_of(base, text) < 1.05 * LONG_TOKENS
    paragraphs = text.split("\n\n")
    assert len(set(paragraphs)) == len(paragraphs)
