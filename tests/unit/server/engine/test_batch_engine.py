from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from server.engine.base_model import BaseModel
from server.engine.batch_engine import BatchEngine
from server.engine.kv_cache import KvPool
from server.engine.options import EngineOptions
from server.engine.prompt import Prompt
from server.engine.request import ArtefactRef, Delta, EngineRequest, FinishReason, Scope, Score
from server.engine.sequence import Event
from server.errors import ContextLimit, DocumentNotFound, InvalidInput, ModuleCorrupt, TooManyRequests, Unavailable
from server.modules.artefact import Artefact
from tests.support.oracle import Oracle
from tests.support.tiny_models import CONTEXT, EOS, VOCABULARY, Shelf, tiny_artefact, tiny_base, tiny_prompt, tiny_request

POISON = 200
"""A token that the poisoned model cannot read."""


@dataclass
class Ear:
    """Collects what one request is told."""

    events: list[Event] = field(default_factory=list)

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    @property
    def deltas(self) -> list[Delta]:
        return [event for event in self.events if isinstance(event, Delta)]

    @property
    def tokens(self) -> tuple[int, ...]:
        return tuple(token for delta in self.deltas for token in delta.token_ids)

    @property
    def reason(self) -> FinishReason | None:
        return self.deltas[-1].finish_reason if self.deltas else None

    @property
    def error(self) -> Exception:
        assert isinstance(self.events[-1], Exception)
        return self.events[-1]


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return tiny_base("llama", torch.float64)


@pytest.fixture(scope="module")
def oracle(base: BaseModel) -> Oracle:
    return Oracle(base)


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


Make = Callable[..., BatchEngine]


@pytest.fixture
def make(base: BaseModel, shelf: Shelf) -> Iterator[Make]:
    """Engines by options, closed at the end."""
    engines: list[BatchEngine] = []

    def build(**options: Any) -> BatchEngine:
        engines.append(BatchEngine(base, EngineOptions(**options), shelf.read))
        return engines[-1]

    yield build
    for engine in engines:
        engine.close()


def spoken(oracle: Oracle, prompt: Prompt, max_tokens: int, module: Artefact | None = None) -> tuple[int, ...]:
    """The oracle's greedy answer, without the end of the turn."""
    return tuple(token for token in oracle.greedy(prompt, max_tokens, module).tokens if token != EOS)


def start(engine: BatchEngine, request: EngineRequest) -> Ear:
    ear = Ear()
    engine.add(engine.generation(request, ear))
    return ear


def finish(engine: BatchEngine) -> None:
    while len(engine.scheduler):
        if not engine.step():
            engine.wait_for_load(1.0)


def answer(engine: BatchEngine, request: EngineRequest) -> Ear:
    ear = start(engine, request)
    finish(engine)
    return ear


def test_an_answer_tells_its_text_tokens_and_counts(make: Make, oracle: Oracle) -> None:
    prompt = tiny_prompt(1)
    ear = answer(make(), tiny_request("a", prompt, max_tokens=6))
    assert ear.tokens == spoken(oracle, prompt, 6)
    assert (ear.reason, ear.deltas[-1].prompt_tokens, ear.deltas[-1].completion_tokens) == (FinishReason.LENGTH, len(prompt), 6)
    assert all(delta.finish_reason is None for delta in ear.deltas[:-1])


def test_the_end_of_turn_token_stops_and_is_counted_but_not_told(
    base: BaseModel, make: Make, oracle: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = tiny_prompt(1)
    tokens = oracle.greedy(prompt, 4).tokens
    engine = make()
    monkeypatch.setattr(engine, "base", replaced(base, eos_ids=frozenset({tokens[3]})))
    ear = answer(engine, tiny_request("a", prompt, max_tokens=9))
    assert ear.tokens == tokens[:3]
    assert (ear.reason, ear.deltas[-1].completion_tokens) == (FinishReason.STOP, 4)


def replaced(base: BaseModel, **changes: Any) -> BaseModel:
    return BaseModel(**{**base.__dict__, **changes})


def test_long_prompts_are_read_in_pieces_while_others_go_on(make: Make, oracle: Oracle) -> None:
    engine = make(step_tokens=8)
    short, long = tiny_prompt(1), tiny_prompt(2, bare=60)
    first = start(engine, tiny_request("short", short, max_tokens=10))
    for _ in range(4):
        engine.step()
    second = start(engine, tiny_request("long", long, max_tokens=3))
    engine.step()
    told = len(first.tokens)
    engine.step()
    assert not second.events
    assert len(first.tokens) >= told
    finish(engine)
    assert first.tokens == spoken(oracle, short, 10)
    assert second.tokens == spoken(oracle, long, 3)


def test_a_cancelled_request_keeps_what_it_was_told_and_frees_its_place(make: Make, oracle: Oracle) -> None:
    engine = make(max_batch=1)
    prompt = tiny_prompt(1)
    first = start(engine, tiny_request("first", prompt, max_tokens=100))
    second = start(engine, tiny_request("second", prompt, max_tokens=4))
    for _ in range(5):
        engine.step()
    engine.cancel("first")
    engine.cancel("unknown")
    finish(engine)
    assert first.reason is FinishReason.CANCELLED
    assert first.tokens == spoken(oracle, prompt, 5)
    assert second.tokens == spoken(oracle, prompt, 4)


def test_a_waiting_request_can_be_cancelled(make: Make) -> None:
    engine = make(max_batch=1)
    start(engine, tiny_request("first", tiny_prompt(1)))
    engine.step()
    second = start(engine, tiny_request("second", tiny_prompt(1)))
    engine.cancel("second")
    engine.step()
    assert second.reason is FinishReason.CANCELLED
    finish(engine)


def test_a_full_queue_turns_new_requests_away(make: Make) -> None:
    engine = make(max_batch=1, max_queue=2)
    ears = [start(engine, tiny_request(str(number), tiny_prompt(number))) for number in range(4)]
    assert isinstance(ears[3].error, TooManyRequests)
    assert ears[3].error.retry_after >= 1
    finish(engine)
    assert [ear.reason for ear in ears[:3]] == [FinishReason.LENGTH] * 3


def test_a_request_beyond_the_context_is_refused_with_numbers(make: Make) -> None:
    engine = make()
    prompt = tiny_prompt(1, bare=40, adapted=10)
    engine.generation(tiny_request("fits", prompt, max_tokens=CONTEXT - 50), Ear())
    with pytest.raises(ContextLimit) as caught:
        engine.generation(tiny_request("long", prompt, max_tokens=CONTEXT - 49), Ear())
    assert caught.value.extra == {"prompt_tokens": 50, "max_tokens": CONTEXT - 49, "limit": CONTEXT}
    with pytest.raises(ContextLimit):
        engine.scoring(tiny_request("long", prompt), ["x" * (CONTEXT - 49)], Ear())


def test_a_request_larger_than_the_cache_is_refused(make: Make) -> None:
    with pytest.raises(ContextLimit):
        make(kv_tokens=64).generation(tiny_request("long", tiny_prompt(1), max_tokens=60), Ear())


def test_the_whole_context_can_be_used(make: Make) -> None:
    ear = answer(make(), tiny_request("fits", tiny_prompt(1, bare=CONTEXT - 12, adapted=10), max_tokens=2))
    assert ear.reason is FinishReason.LENGTH


@pytest.mark.parametrize("prompt", [Prompt(bare=(), adapted=()), Prompt(bare=(VOCABULARY,), adapted=()), Prompt(bare=(-1,), adapted=())])
def test_a_prompt_the_model_cannot_read_is_refused(make: Make, prompt: Prompt) -> None:
    with pytest.raises(InvalidInput):
        make().generation(tiny_request("a", prompt), Ear())


@pytest.mark.parametrize("sampling", [{"max_tokens": 0}, {"temperature": -1.0}, {"temperature": float("nan")}, {"top_p": 0.0}])
def test_sampling_that_means_nothing_is_refused(make: Make, sampling: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        make().generation(tiny_request("a", tiny_prompt(1), **sampling), Ear())


def test_a_corrupt_module_reaches_only_the_request_that_asked(base: BaseModel, make: Make, oracle: Oracle, shelf: Shelf) -> None:
    engine = make()
    prompt = tiny_prompt(1)
    corrupt = shelf.put("bad", tiny_artefact(base, 1))
    shelf.corrupt.add("bad")
    good = start(engine, tiny_request("good", prompt, shelf.put("good", tiny_artefact(base, 2))))
    bare = start(engine, tiny_request("base", prompt))
    bad = start(engine, tiny_request("bad", prompt, corrupt))
    finish(engine)
    assert isinstance(bad.error, ModuleCorrupt)
    assert good.tokens == spoken(oracle, prompt, 8, shelf.artefacts["good"])
    assert bare.tokens == spoken(oracle, prompt, 8)


def test_a_corrupt_extractor_fails_the_request_and_holds_no_slot(base: BaseModel, make: Make, shelf: Shelf) -> None:
    engine = make(slots=1)
    shelf.corrupt.add("ke")
    module = shelf.put("module", tiny_artefact(base, 1))
    bad = start(engine, tiny_request("bad", tiny_prompt(1), module, shelf.put("ke", tiny_artefact(base, 2, extractor=True))))
    other = start(engine, tiny_request("other", tiny_prompt(1), shelf.put("other", tiny_artefact(base, 3))))
    finish(engine)
    assert isinstance(bad.error, ModuleCorrupt)
    assert other.reason is not None


def test_a_module_whose_output_is_not_finite_ends_its_request_and_taints_nobody(
    base: BaseModel, make: Make, oracle: Oracle, shelf: Shelf
) -> None:
    broken = tiny_artefact(base, 1)
    next(iter(broken.b.values())).fill_(float("nan"))
    engine = make(max_batch=3)
    requests = [
        tiny_request("bad", tiny_prompt(1, bare=30), shelf.put("bad", broken)),
        *(tiny_request(str(n), tiny_prompt(n)) for n in range(6)),
    ]
    bad, *others = [start(engine, request) for request in requests]
    finish(engine)
    assert isinstance(bad.error, Unavailable)
    for number, other in enumerate(others):
        assert other.tokens == spoken(oracle, tiny_prompt(number), 8)


@pytest.fixture
def poisoned(base: BaseModel) -> Iterator[None]:
    """A model whose forward pass fails on one token."""

    def refuse(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        if (named["input_ids"] == POISON).any():
            raise RuntimeError("a step failed")

    handle = base.model.register_forward_pre_hook(refuse, with_kwargs=True)
    yield
    handle.remove()


@pytest.mark.usefixtures("poisoned")
def test_a_failing_step_ends_only_the_request_that_makes_it_fail(make: Make, oracle: Oracle, caplog: pytest.LogCaptureFixture) -> None:
    engine = make()
    healthy = Prompt(bare=(256, 1, 2), adapted=(3, 4))
    first = start(engine, tiny_request("first", healthy, max_tokens=6))
    engine.step()
    bad = start(engine, tiny_request("bad", Prompt(bare=(256, POISON), adapted=(3,))))
    second = start(engine, tiny_request("second", healthy, max_tokens=6))
    finish(engine)
    expected = spoken(oracle, healthy, 6)
    assert POISON not in expected
    assert isinstance(bad.error, Unavailable)
    assert first.tokens == second.tokens == expected
    assert "a step failed" in caplog.text


def test_a_reused_slot_holds_nothing_of_its_last_owner(base: BaseModel, make: Make, oracle: Oracle, shelf: Shelf) -> None:
    engine = make(slots=1)
    large = shelf.put("large", tiny_artefact(base, 1, rank=8))
    small = shelf.put("small", tiny_artefact(base, 2, rank=2))
    partial = shelf.put("partial", tiny_artefact(base, 3, rank=4, targets=3))
    prompt = tiny_prompt(1)
    for ref in (large, small, large, partial, small):
        assert answer(engine, tiny_request("a", prompt, ref)).tokens == spoken(oracle, prompt, 8, shelf.artefacts[ref.digest])
    assert engine.stats()["slot_evictions"] == 4


def test_steps_of_the_same_shape_wear_what_their_own_requests_wear(base: BaseModel, make: Make, oracle: Oracle, shelf: Shelf) -> None:
    engine = make(slots=2)
    refs = [shelf.put(f"module-{seed}", tiny_artefact(base, seed)) for seed in range(2)]
    prompt = tiny_prompt(1)
    for ref in (*refs, *refs):
        told = answer(engine, tiny_request("a", prompt, ref, max_tokens=1)).tokens
        assert told == spoken(oracle, prompt, 1, shelf.artefacts[ref.digest])
    assert spoken(oracle, prompt, 1, shelf.artefacts["module-0"]) != spoken(oracle, prompt, 1, shelf.artefacts["module-1"])


def test_an_evicted_module_is_read_again(base: BaseModel, make: Make, shelf: Shelf) -> None:
    engine = make()
    ref = shelf.put("module", tiny_artefact(base, 1))
    before = answer(engine, tiny_request("a", tiny_prompt(1), ref)).tokens
    engine.evict(Path("module"), DocumentNotFound("deleted"))
    assert engine.stats()["host_bytes"] == engine.stats()["module_slots"] == 0
    shelf.put("module", tiny_artefact(base, 2))
    assert answer(engine, tiny_request("a", tiny_prompt(1), ref)).tokens != before
    assert shelf.reads == ["module", "module"]


def test_a_request_in_flight_finishes_on_the_module_that_is_evicted(base: BaseModel, make: Make, oracle: Oracle, shelf: Shelf) -> None:
    engine = make()
    artefact = tiny_artefact(base, 1)
    ear = start(engine, tiny_request("a", tiny_prompt(1), shelf.put("module", artefact)))
    while not ear.events:
        if not engine.step():
            engine.wait_for_load(1.0)
    engine.evict(Path("module"), DocumentNotFound("deleted"))
    finish(engine)
    assert ear.tokens == spoken(oracle, tiny_prompt(1), 8, artefact)


@pytest.mark.parametrize("loaded", [True, False])
def test_a_request_that_waits_for_an_evicted_artefact_fails_and_brings_nothing_back(
    base: BaseModel, make: Make, shelf: Shelf, loaded: bool
) -> None:
    engine = make(max_batch=1)
    doomed = shelf.put("module", tiny_artefact(base, 1))
    twin = replace(doomed, directory=Path("twin"))
    running = start(engine, tiny_request("running", tiny_prompt(1)))
    engine.step()
    waiting = start(engine, tiny_request("waiting", tiny_prompt(2), doomed))
    other = start(engine, tiny_request("twin", tiny_prompt(3), twin))
    if loaded:
        engine.wait_for_load(1.0)
        engine.step()
    engine.evict(doomed.directory, DocumentNotFound("deleted"))
    finish(engine)
    assert isinstance(waiting.error, DocumentNotFound)
    assert running.tokens
    assert other.tokens, "equal bytes in another directory are another's"
    assert engine.stats()["module_slots"] == engine.stats()["host_adapters"] == 1


def score(engine: BatchEngine, request: EngineRequest, continuations: list[str]) -> list[Score]:
    ear = Ear()
    engine.add(engine.scoring(request, continuations, ear))
    finish(engine)
    assert isinstance(ear.events[-1], list)
    return ear.events[-1]


@pytest.mark.parametrize("step_tokens", [512, 5])
@pytest.mark.parametrize("scope", list(Scope))
def test_scores_are_the_oracles_log_probabilities(
    base: BaseModel, make: Make, oracle: Oracle, shelf: Shelf, scope: Scope, step_tokens: int
) -> None:
    artefact, prompt = tiny_artefact(base, 1, scope=scope), tiny_prompt(1, bare=20)
    engine = make(step_tokens=step_tokens)
    neighbour = start(engine, tiny_request("neighbour", tiny_prompt(2), max_tokens=30))
    scores = score(engine, tiny_request("a", prompt, shelf.put("module", artefact)), ["thirty days", "45", "", "x"])
    assert [score.text for score in scores] == ["thirty days", "45", "", "x"]
    assert [len(score.token_ids) for score in scores] == [11, 2, 0, 1]
    for told in scores:
        if told.token_ids:
            logits = oracle.follow(prompt, told.token_ids, artefact)
            expected = torch.log_softmax(logits, -1).gather(1, torch.tensor(told.token_ids)[:, None])[:, 0]
            assert torch.allclose(torch.tensor(told.logprobs, dtype=torch.float64), expected, atol=1e-9, rtol=0)
    assert neighbour.reason is not None


def test_the_prompt_is_read_once_for_all_continuations(make: Make) -> None:
    engine = make()
    score(engine, tiny_request("a", tiny_prompt(1, bare=100)), ["one", "two", "three"])
    assert engine.stats()["prompt_tokens"] < 130


def test_nothing_to_score_is_told_at_once(make: Make) -> None:
    assert score(make(), tiny_request("a", tiny_prompt(1)), []) == []


def test_many_requests_leave_no_rows_slots_or_tensors(base: BaseModel, make: Make, shelf: Shelf) -> None:
    engine = make(slots=2, max_batch=4, max_queue=1000)
    refs: list[ArtefactRef | None] = [None, *(shelf.put(f"module-{number}", tiny_artefact(base, number)) for number in range(4))]
    answer(engine, tiny_request("warm", tiny_prompt(1)))
    for number in range(100):
        start(engine, tiny_request(str(number), tiny_prompt(number, bare=5 + number % 7), refs[number % 5], max_tokens=2))
        if number % 9 == 0:
            engine.cancel(str(number))
    finish(engine)
    gc.collect()
    stats = engine.stats()
    assert (stats["kv_tokens_reserved"], stats["waiting"], stats["running"], stats["ended"]) == (0, 0, 0, 101)
    assert not [thing for thing in gc.get_objects() if type(thing) is KvPool]
    assert all(not users for users in engine.adapters.modules._users)


def test_a_seeded_request_does_not_depend_on_its_neighbours(make: Make) -> None:
    engine = make()
    sampling: dict[str, Any] = {"max_tokens": 20, "temperature": 1.0, "seed": 5, "top_p": 0.9}
    alone = answer(engine, tiny_request("a", tiny_prompt(1), **sampling)).tokens
    ears = [start(engine, tiny_request(str(n), tiny_prompt(n), temperature=1.0, seed=n, max_tokens=5 + n)) for n in range(5)]
    ears.append(start(engine, tiny_request("a", tiny_prompt(1), **sampling)))
    finish(engine)
    assert ears[-1].tokens == alone


def test_closing_leaves_the_model_as_it_was(base: BaseModel, shelf: Shelf) -> None:
    layers = dict(base.model.named_modules())
    attention = base.model.config._attn_implementation
    ids = torch.tensor([[1, 2, 3]])
    before = base.model(input_ids=ids).logits
    engine = BatchEngine(base, EngineOptions(), shelf.read)
    answer(engine, tiny_request("a", tiny_prompt(1), shelf.put("module", tiny_artefact(base, 1))))
    engine.close()
    assert dict(base.model.named_modules()) == layers
    assert base.model.config._attn_implementation == attention
    assert torch.equal(base.model(input_ids=ids).logits, before)


def test_one_model_serves_one_engine(base: BaseModel, make: Make) -> None:
    make()
    with pytest.raises(ValueError, match="another engine"):
        BatchEngine(base, EngineOptions())


def test_the_tokenizers_end_is_the_models_end() -> None:
    assert tiny_base().tokenizer.eos_token_id == EOS
