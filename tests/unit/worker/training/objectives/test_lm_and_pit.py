"""What the two likelihoods hold out, and how documents longer than a chunk are read."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.support.tiny_document import BOS, CHUNKS, TEXT, document, pair
from worker.training.examples import Example
from worker.training.objectives.lm import LM, document_examples
from worker.training.objectives.pit import PIT, packs
from worker.training.objectives.raw import begin, held_out_part, raw_example
from worker.training.recipe import Recipe

RECIPE = Recipe(preset="quick", objective="lm", chunk_tokens=30)
DOCUMENT = tuple(range(100))
SUMMARIES = [(1, 1, 1), (2, 2), (3,), (4, 4, 4, 4, 4, 4)]


@pytest.mark.parametrize("size", [1, 2, 30, 99, 100, 101])
@pytest.mark.parametrize("overlap", [0.0, 0.1, 0.9])
def test_every_token_is_predicted_once_behind_those_before_it(size: int, overlap: float) -> None:
    examples = document_examples(BOS, DOCUMENT, size, overlap)
    assert tuple(token for example in examples for token in example.target) == DOCUMENT
    for example in examples:
        first, *before = example.student.ids
        assert first == BOS
        assert len(before) + len(example.target) <= size
        assert tuple(before) == DOCUMENT[example.target[0] - len(before) : example.target[0]]


def test_what_is_held_out_has_other_borders() -> None:
    data = LM().data(document(TEXT), RECIPE, 0)
    assert data.held_out
    borders = {example.target[:9] for example in data.training}
    assert all(example.target[:9] not in borders for example in data.held_out)
    assert data.asked == []


def test_one_chunk_is_enough() -> None:
    data = LM().data(document("Short."), RECIPE, 0)
    assert [len(example.target) for example in data.training + data.held_out] == [6, 3]


@pytest.mark.parametrize(("limit", "found"), [(100, [12]), (6, [6, 6]), (5, [5, 1, 6]), (1, [3, 2, 1, 6])])
def test_summaries_are_packed_before_a_chunk(limit: int, found: list[int]) -> None:
    made = list(packs(SUMMARIES, limit))
    assert [len(pack) for pack in made] == found
    assert tuple(token for pack in made for token in pack) == tuple(token for summary in SUMMARIES for token in summary)
    assert list(packs([], limit)) == []


def test_a_chunk_without_summaries_is_read_all_the_same() -> None:
    pairs = [pair("summary", CHUNKS[0], f"Fact {i}.") for i in range(4)]
    source = document(pairs=pairs)
    data = PIT().data(source, replace(RECIPE, objective="pit"), 0)
    alone = [example for example in data.training if source.tokenizer.decode(list(example.target)) in CHUNKS[1:]]
    assert len(alone) == 2
    assert len(data.training) > 2
    assert len(data.held_out) == 1


@pytest.mark.parametrize(("count", "held"), [(0, 0), (1, 0), (2, 1), (5, 1), (10, 1), (25, 2), (160, 16)])
def test_a_share_is_held_out(count: int, held: int) -> None:
    examples = [example(i) for i in range(count)]
    data = held_out_part(examples, 0.1)
    assert (len(data.training), len(data.held_out)) == (count - held, held)
    assert sorted(data.training + data.held_out, key=lambda e: e.target) == examples


def example(number: int) -> Example:
    return raw_example((BOS,), (number,))


def test_a_tokenizer_without_a_beginning_begins_with_its_end_of_text() -> None:
    tokenizer = document().tokenizer
    assert begin(tokenizer) == BOS
    tokenizer.bos_token = None
    assert begin(tokenizer) == tokenizer.eos_token_id
