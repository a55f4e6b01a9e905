"""The teacher's states: run once, kept, and those of the bare base model with the context."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from server.engine.base_model import BaseModel
from tests.support.tiny_models import EOS, tiny_base
from tests.support.tiny_training import CPU, tiny_pairs
from worker.training import teacher
from worker.training.examples import Example, to_examples
from worker.training.fit import Stopped
from worker.training.states import target_states
from worker.training.teacher import BATCH, LAYER_DTYPE, TeacherCache, example_key, run_teacher


@pytest.fixture
def base() -> BaseModel:
    return tiny_base()


@pytest.fixture
def examples(base: BaseModel) -> list[Example]:
    return to_examples(base.tokenizer, tiny_pairs(BATCH + 4), EOS)


@pytest.fixture
def cache(tmp_path: Path) -> TeacherCache:
    return TeacherCache(tmp_path / "teacher")


class Forwards:
    """Counts the passes through a model's body."""

    def __init__(self, base: BaseModel) -> None:
        self.count = 0
        self._hook = base.model.base_model.register_forward_pre_hook(self._one)

    def _one(self, *_: object) -> None:
        self.count += 1

    def close(self) -> None:
        self._hook.remove()


@pytest.fixture
def forwards(base: BaseModel) -> Iterator[Forwards]:
    counted = Forwards(base)
    yield counted
    counted.close()


def teach(base: BaseModel, examples: Sequence[Example], cache: TeacherCache) -> list[tuple[int, int]]:
    """The reports of a run."""
    reports: list[tuple[int, int]] = []
    run_teacher(base.model.base_model, examples, cache, CPU, lambda done, total: reports.append((done, total)))
    return reports


@pytest.fixture
def long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every context is too long to be read again for each pack."""
    monkeypatch.setattr(teacher, "PACK_TOKENS", 1)


@pytest.mark.usefixtures("long")
def test_a_long_context_is_read_once_and_every_example_once(
    base: BaseModel, examples: list[Example], cache: TeacherCache, forwards: Forwards
) -> None:
    assert teach(base, examples, cache) == [(8, 12), (12, 12)]
    assert forwards.count == 1 + 2  # the shared context, two batches
    assert all(cache.has(example) for example in examples)


def test_short_contexts_pass_side_by_side(
    base: BaseModel, cache: TeacherCache, forwards: Forwards, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = [replace(pair, context=f"{number % 3} {pair.context}") for number, pair in enumerate(tiny_pairs(9))]
    examples = to_examples(base.tokenizer, pairs, EOS)
    whole = max(len(example.context) + len(example.target) for example in examples)
    monkeypatch.setattr(teacher, "PACK_TOKENS", 2 * whole)
    reports = teach(base, examples, cache)
    assert reports[-1] == (9, 9)
    assert 1 < len(reports) == forwards.count < 9
    assert all(cache.has(example) for example in examples)


@pytest.mark.usefixtures("long")
def test_what_is_cached_is_not_run_again(base: BaseModel, examples: list[Example], tmp_path: Path, forwards: Forwards) -> None:
    teach(base, examples[:8], TeacherCache(tmp_path / "teacher"))
    before = forwards.count
    later = TeacherCache(tmp_path / "teacher")
    assert teach(base, examples[:8], later) == []
    assert forwards.count == before
    assert teach(base, examples, later) == [(12, 12)]
    assert forwards.count == before + 2


@pytest.mark.parametrize("killed_at", range(1, 8))
def test_a_run_that_was_killed_ends_with_the_same_bits(
    base: BaseModel, tmp_path: Path, killed_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between any two files. What passes together must not depend on what is there: other shapes of products have other last bits."""
    pairs = [replace(pair, context=f"{number % 3} {pair.context}") for number, pair in enumerate(tiny_pairs(9))]
    examples = to_examples(base.tokenizer, pairs, EOS)
    monkeypatch.setattr(teacher, "PACK_TOKENS", 2 * max(len(example.context) + len(example.target) for example in examples))
    whole, parts = TeacherCache(tmp_path / "whole"), TeacherCache(tmp_path / "parts")
    teach(base, examples, whole)
    first = iter(range(killed_at))
    put = TeacherCache.put

    def put_until(self: TeacherCache, example: Example, states: Sequence[Tensor]) -> None:
        if next(first, None) is None:
            raise Stopped
        put(self, example, states)

    monkeypatch.setattr(TeacherCache, "put", put_until)
    with pytest.raises(Stopped):
        teach(base, examples, parts)
    monkeypatch.setattr(TeacherCache, "put", put)
    teach(base, examples, parts)
    files = sorted(file.name for file in (tmp_path / "whole").iterdir())
    assert len(files) == 9
    assert all((tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes() for name in files)


@pytest.mark.usefixtures("long")
def test_a_stopped_run_keeps_what_it_has(base: BaseModel, examples: list[Example], cache: TeacherCache) -> None:
    def stop(done: int, total: int) -> None:
        raise Stopped

    with pytest.raises(Stopped):
        run_teacher(base.model.base_model, examples, cache, CPU, stop)
    assert [cache.has(example) for example in examples] == [True] * 8 + [False] * 4
    assert teach(base, examples, cache) == [(12, 12)]


@pytest.mark.parametrize("tokens", [1, 10_000], ids=["long", "short"])
def test_states_are_those_of_the_base_with_the_context(
    base: BaseModel, examples: list[Example], cache: TeacherCache, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher, "PACK_TOKENS", tokens)
    teach(base, examples, cache)
    some = [examples[9], examples[0]]
    layers, final = cache.get(some, CPU)
    with torch.no_grad():
        expected = [target_states(base.model.base_model, [e.context.ids], [e.target], CPU) for e in some]
    wanted = torch.cat([torch.stack(states) for states in expected], dim=1)
    assert (layers.dtype, layers.shape) == (LAYER_DTYPE, wanted.shape)
    torch.testing.assert_close(final, wanted[-1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(layers.float(), wanted, atol=2e-2, rtol=2e-2)


def test_the_key_is_what_the_teacher_reads(base: BaseModel, examples: list[Example]) -> None:
    again = to_examples(base.tokenizer, tiny_pairs(BATCH + 4), EOS)
    assert [example_key(e) for e in again] == [example_key(e) for e in examples]
    assert len({example_key(e) for e in examples}) == len(examples)


def test_of_the_states_those_named_are_stored(base: BaseModel, examples: list[Example], tmp_path: Path) -> None:
    whole, last = TeacherCache(tmp_path / "whole"), TeacherCache(tmp_path / "last", kept=(1,))
    for cache in (whole, last):
        teach(base, examples[:3], cache)
    (layers, final), (kept, same) = whole.get(examples[:3], CPU), last.get(examples[:3], CPU)
    assert torch.equal(kept, layers[1:])
    assert torch.equal(final, same)


def test_what_is_there_twice_is_run_once(base: BaseModel, examples: list[Example], cache: TeacherCache) -> None:
    assert teach(base, [*examples[:3], *examples[:3]], cache) == [(3, 3)]
