from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import pytest
import torch

from server.engine.adapter_bank import AdapterBank
from server.engine.adapter_pool import AdapterPool
from server.engine.host_cache import AdapterKey, HostAdapter
from server.engine.kv_cache import KvCache
from server.engine.options import EngineOptions
from server.engine.prompt import Prompt
from server.engine.request import Scope
from server.engine.scheduler import Scheduler
from server.engine.sequence import Generation, Live, Status
from tests.support.tiny_models import byte_tokenizer, tiny_request

TOKENIZER = byte_tokenizer()


def scheduler(
    slots: int = 2, max_batch: int = 4, step_tokens: int = 10, kv_tokens: int = 1000, fetch: Callable[[Live], None] | None = None
) -> Scheduler:
    banks = [AdapterBank(slots=slots, max_rank=1, shapes=[(2, 2)], dtype=torch.float32, device=torch.device("cpu")) for _ in range(2)]
    options = EngineOptions(slots=slots, max_batch=max_batch, step_tokens=step_tokens)
    return Scheduler(options, AdapterPool(*banks), KvCache(kv_tokens), fetch or _never)


def _never(_: Live) -> None:
    raise AssertionError("every adapter has its tensors with it")


def sequence(name: str, prompt: int = 4, module: str | None = None, loaded: bool = True) -> Generation:
    created = Generation(tiny_request(name, Prompt(bare=(1,) * prompt, adapted=())), TOKENIZER, (), lambda event: None)
    if module is not None:
        created.module = Future()
        if loaded:
            arrive(created, module)
    return created


def arrive(waiting: Generation, module: str) -> None:
    assert waiting.module is not None
    pair = (torch.ones(1, 2), torch.ones(1, 2))
    key = AdapterKey(directory=Path(module), digest=module, composition=None)
    waiting.module.set_result(HostAdapter(key=key, scope=Scope.ALL, scaling=1.0, tensors=(pair,), w_km=None, w_ke=None, nbytes=0))


def planned(scheduled: Scheduler) -> list[tuple[str, int, int]]:
    """One step: who computes what; and its doing."""
    works = scheduled.plan()
    for work in works:
        work.sequence.computed = work.end
        if work.end == len(work.sequence.tokens):
            work.sequence.tokens.append(9)
    return sorted((work.sequence.request.request_id, work.start, work.end) for work in works)


def test_prompts_share_the_step_in_order_and_decoding_never_waits() -> None:
    scheduled = scheduler(step_tokens=10)
    for name, prompt in (("a", 4), ("b", 12), ("c", 3)):
        scheduled.add(sequence(name, prompt))
    assert planned(scheduled) == [("a", 0, 4), ("b", 0, 6)]
    assert planned(scheduled) == [("a", 4, 5), ("b", 6, 12), ("c", 0, 3)]
    assert planned(scheduled) == [("a", 5, 6), ("b", 12, 13), ("c", 3, 4)]


def test_logits_are_wanted_only_where_a_prompt_ends() -> None:
    scheduled = scheduler(step_tokens=3)
    scheduled.add(sequence("a", prompt=5))
    wanted = []
    for _ in range(3):
        works = scheduled.plan()
        wanted.append([work.logits for work in works])
        works[0].sequence.computed = works[0].end
        if works[0].end == 5:
            works[0].sequence.tokens.append(9)
    assert wanted == [[0], [1], [1]]


def test_places_go_in_order_of_arrival() -> None:
    scheduled = scheduler(max_batch=2)
    first, second, third = (sequence(name) for name in "abc")
    for waiting in (first, second, third):
        scheduled.add(waiting)
    scheduled.plan()
    assert (first.status, second.status, third.status) == (Status.RUNNING, Status.RUNNING, Status.WAITING)
    scheduled.remove(first)
    scheduled.plan()
    assert third.status is Status.RUNNING


def test_a_load_holds_up_nobody() -> None:
    scheduled = scheduler()
    slow = sequence("slow", module="m", loaded=False)
    scheduled.add(slow)
    scheduled.add(sequence("fast"))
    assert planned(scheduled) == [("fast", 0, 4)]
    arrive(slow, "m")
    assert ("slow", 0, 4) in planned(scheduled)


def test_who_waits_for_a_slot_is_not_overtaken() -> None:
    scheduled = scheduler(slots=1)
    holder, waiting, later = sequence("holder", module="m"), sequence("waiting", module="n"), sequence("later", module="m")
    for arriving in (holder, waiting, later):
        scheduled.add(arriving)
    scheduled.plan()
    assert (waiting.status, later.status) == (Status.WAITING, Status.WAITING)
    scheduled.remove(holder)
    scheduled.plan()
    assert (waiting.status, later.status) == (Status.RUNNING, Status.WAITING)


def test_who_lost_its_slot_while_it_waited_is_fetched_and_holds_up_nobody() -> None:
    """`first` found its module in a slot alone, which goes to `other`'s."""
    fetched: list[Live] = []

    def fetch(again: Live) -> None:
        fetched.append(again)
        again.module = Future()

    scheduled = scheduler(slots=1, fetch=fetch)
    other, first, bare = sequence("other", module="n"), sequence("first", module="m"), sequence("bare")
    assert first.module is not None
    first.module = without_tensors(first.module.result())
    for arriving in (other, first, bare):
        scheduled.add(arriving)
    assert planned(scheduled) == [("bare", 0, 4), ("other", 0, 4)]
    assert fetched == [first]
    arrive(first, "m")
    scheduled.remove(other)
    assert ("first", 0, 4) in planned(scheduled)
    assert fetched == [first]


def without_tensors(adapter: HostAdapter) -> Future[HostAdapter]:
    future: Future[HostAdapter] = Future()
    future.set_result(adapter.without_tensors())
    return future


def test_memory_is_taken_and_given_back() -> None:
    scheduled = scheduler(kv_tokens=64)
    first, second = sequence("a"), sequence("b", module="m")
    scheduled.add(first)
    scheduled.add(second)
    assert planned(scheduled) == [("a", 0, 4)]
    scheduled.remove(first)
    assert planned(scheduled) == [("b", 0, 4)]
    scheduled.remove(second)
    assert scheduled.cache.reserved == 0


def test_a_sequence_that_cannot_be_equipped_holds_nothing() -> None:
    scheduled = scheduler()
    broken = sequence("a", module="m", loaded=False)
    assert broken.module is not None
    broken.module.set_exception(OSError("disk"))
    scheduled.add(broken)
    with pytest.raises(OSError, match="disk"):
        scheduled.plan()
    assert scheduled.cache.reserved == 0
    scheduled.remove(broken)
    assert len(scheduled) == 0


def test_single_tokens_come_first_and_slots_side_by_side() -> None:
    scheduled = scheduler(step_tokens=100)
    for name, module in (("a", "m"), ("b", "n"), ("c", "m")):
        scheduled.add(sequence(name, module=module))
    planned(scheduled)
    scheduled.add(sequence("d", prompt=8))
    assert [work.sequence.request.request_id for work in scheduled.plan()] == ["a", "c", "b", "d"]
