"""Each objective against its definition: the sequences that it is about, and the loss of one batch of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from server.engine.prompt import ANSWER_BARE
from tests.support.byte_tokenizer import byte_tokenizer
from tests.support.literal_objectives import Sequences, literal_dcd, literal_nll
from tests.support.tiny_document import BOS, CHUNKS, TEXT, TITLE, bench, document, pair
from tests.support.tiny_models import EOS
from worker.training.examples import Example
from worker.training.objectives.objective import Data
from worker.training.objectives.registry import OBJECTIVES
from worker.training.recipe import HiddenTerm, ObjectiveName, Recipe

Ids = tuple[int, ...]
SEED = 3
RECIPE = Recipe(preset="quick", objective="mixed", rank=4, alpha=4.0, chunk_tokens=60, chunk_overlap=0.1)
PAIRS = [
    *[pair("summary", CHUNKS[i % 3], f"Number {i} of the facts is this.") for i in range(8)],
    *[pair("question", CHUNKS[0], f"{i} metres", f"{ANSWER_BARE}\nHow long is {i}?") for i in range(8)],
    *[pair("recitation", CHUNKS[1], "in May", f"Complete {i}.") for i in range(2)],
]


def ids(text: str) -> Ids:
    return tuple(byte_tokenizer()(text, add_special_tokens=False)["input_ids"])


def made(recipe: Recipe) -> Data:
    return OBJECTIVES[recipe.objective].data(document(pairs=PAIRS), recipe, SEED)


def told(example: Example) -> Sequences:
    teacher = example.teacher.ids if example.teacher else ()
    return Sequences(teacher=teacher, student=example.student.ids, target=example.target)


def chat(turn: str) -> Ids:
    """The template for models without one, in full."""
    return ids(f"system:\nYou are a helpful assistant.\n\nuser:\n{turn}\n\nassistant:\n")


def lm() -> list[Sequences]:
    """60 tokens at a time, of which the first six are those before."""
    text = ids(TEXT)
    found, start = [], 0
    while start < len(text):
        before = text[start - 6 : start] if start else ()
        target = text[start : start + 60 - len(before)]
        found.append(Sequences(student=(BOS, *before), target=target))
        start += len(target)
    return found


def pit() -> list[Sequences]:
    """Of eight summaries the third is held out; no two of a chunk fit sixty tokens."""
    kept = [p for i, p in enumerate(p for p in PAIRS if p.kind == "summary") if i not in (2, 6)]
    return [Sequences(student=(BOS,), target=ids(f"{p.target}\n\n{chunk}")) for chunk in CHUNKS for p in kept if p.context == chunk]


def distilled(kinds: Sequence[str], left_out: Sequence[str]) -> list[Sequences]:
    return [
        Sequences(
            teacher=chat(f"{p.context}\n\n{p.teacher_instruction}"),
            student=chat(p.student_instruction),
            target=(*ids(p.target), EOS),
        )
        for p in PAIRS
        if p.kind in kinds and p.target not in left_out
    ]


def sdcd() -> list[Sequences]:
    return distilled(["summary"], [PAIRS[2].target, PAIRS[6].target])


def mixed() -> list[Sequences]:
    return distilled(["summary", "question", "recitation"], ["2 metres", "6 metres"])


@pytest.mark.parametrize(("name", "definition"), [("lm", lm), ("pit", pit), ("sdcd", sdcd), ("mixed", mixed)])
def test_what_it_trains_on(name: ObjectiveName, definition: Callable[[], list[Sequences]]) -> None:
    assert [told(example) for example in made(replace(RECIPE, objective=name)).training] == definition()


def test_ddcd_trains_on_windows_split_in_two() -> None:
    """Every window begins somewhere else; both sides begin alike."""
    header, text = (BOS, *ids(f'Document "{TITLE}":\n\n')), ids(TEXT)
    size = len(text) // 2
    data = made(replace(RECIPE, objective="ddcd"))
    assert len(data.training) + len(data.held_out) == 16 * 3
    starts = []
    for sequences in map(told, data.training + data.held_out):
        context = sequences.teacher[len(header) :]
        assert sequences.teacher[: len(header)] == sequences.student == header
        assert abs(len(context) - len(sequences.target)) <= 1
        starts.append([i for i in range(len(text)) if text[i : i + size] == context + sequences.target])
    assert all(len(found) == 1 for found in starts)
    assert len({found[0] for found in starts}) == len(starts)
    assert starts != sorted(starts)


def batch_of(recipe: Recipe) -> list[Example]:
    """Different lengths, so that some are padded."""
    training = sorted(made(recipe).training, key=lambda example: len(example.student) + len(example.target))
    return [training[0], training[len(training) // 2], training[-1]]


@pytest.mark.parametrize("name", ["lm", "pit"])
def test_the_likelihood_is_that_of_the_definition(tmp_path: Path, name: ObjectiveName) -> None:
    recipe = replace(RECIPE, objective=name)
    batch = batch_of(recipe)
    with bench(tmp_path, recipe) as tried, torch.no_grad():
        expected = literal_nll(tried.student, [told(example) for example in batch])
        torch.testing.assert_close(tried.loss(batch), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"hidden_weight": 0.3},
        {"hidden_weight": 0.0},
        {"hidden_term": "sum"},
        {"hidden_term": "mean_with_embeddings"},
        {"positions": "unshifted"},
        {"positions": "unshifted", "hidden_term": "mean_with_embeddings"},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())) or "ours",
)
@pytest.mark.parametrize("name", ["ddcd", "sdcd", "mixed"])
def test_the_distillation_is_that_of_the_definition(tmp_path: Path, name: ObjectiveName, changes: dict[str, Any]) -> None:
    recipe = replace(RECIPE, objective=name, **changes)
    batch = batch_of(recipe)
    with bench(tmp_path, recipe) as tried, torch.no_grad():
        told_batch = [told(example) for example in batch]
        expected = literal_dcd(
            tried.student, told_batch, weight=recipe.hidden_weight, hidden_term=recipe.hidden_term, positions=recipe.positions
        )
        torch.testing.assert_close(tried.loss(batch), expected, atol=1e-5, rtol=0)


def test_the_readings_differ(tmp_path: Path) -> None:
    """Else the flags would prove nothing. With L layers the sum is L times the mean, and the embeddings are one layer more."""
    losses = {}
    for term in get_args(HiddenTerm):
        recipe = replace(RECIPE, objective="ddcd", hidden_term=term)
        with bench(tmp_path / term, recipe) as tried, torch.no_grad():
            losses[term] = float(tried.loss(batch_of(recipe)))
            bare = replace(tried, recipe=replace(recipe, hidden_weight=0.0))
            divergence = float(bare.loss(batch_of(recipe)))
    mean, total, embeddings = (losses[term] - divergence for term in ("mean", "sum", "mean_with_embeddings"))
    assert total == pytest.approx(2 * mean, rel=1e-5)
    assert embeddings == pytest.approx(2 / 3 * mean, rel=0.2)
    assert embeddings != pytest.approx(mean, rel=0.05)


@pytest.mark.parametrize("name", ["lm", "pit", "ddcd", "sdcd", "mixed"])
def test_the_first_position_is_no_place_of_distillation(name: ObjectiveName) -> None:
    """It is the attention sink. Only a likelihood, which has no hidden term, predicts from it."""
    data = made(replace(RECIPE, objective=name))
    for example in data.training + data.held_out:
        assert (example.teacher is None) == (name in ("lm", "pit"))
        assert example.teacher is None or min(len(example.teacher), len(example.student)) > 1
