from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from server.engine.attend import Attend, Kind, sdpa
from server.engine.attend_flex import FlexAttend
from server.engine.attention import PackedStep, Span, packed_attention, packing
from server.engine.kv_cache import KvCache, KvRow
from server.errors import BaseModelUnusable

HEADS, KV_HEADS, DIM = 4, 2, 8
CPU = torch.device("cpu")


class Layer(nn.Module):
    layer_idx = 0


class Sequences:
    """Sequences of random queries, keys and values, fed to packed attention piece by piece."""

    def __init__(self, lengths: list[int], attend: Attend = sdpa, **kwargs: Any) -> None:
        torch.manual_seed(0)
        self.attend = attend
        self.kwargs = kwargs
        self.cache = KvCache(10_000)
        self.held: list[KvRow] = []
        self.tensors: list[tuple[Tensor, Tensor, Tensor]] = []
        self.outputs: list[list[Tensor]] = []
        self.done: list[int] = []
        for length in lengths:
            held = self.cache.take(length)
            assert held is not None
            self.held.append(held)
            self.tensors.append(tuple(torch.randn(1, heads, length, DIM, dtype=torch.float64) for heads in (HEADS, KV_HEADS, KV_HEADS)))  # type: ignore[arg-type]
            self.outputs.append([])
            self.done.append(0)

    def step(self, sizes: list[int]) -> None:
        """`sizes` new tokens of each sequence; 0 leaves one out."""
        spans, pieces, offset = [], [], 0
        for number, size in enumerate(sizes):
            if size:
                start = self.done[number]
                spans.append(Span(held=self.held[number], start=start, tokens=size, offset=offset))
                pieces.append([tensor[:, :, start : start + size] for tensor in self.tensors[number]])
                offset += size
        with packing(PackedStep(spans, CPU, self.attend)):
            query, key, value = (torch.cat(parts, dim=2) for parts in zip(*pieces, strict=True))
            out, _ = packed_attention(Layer(), query, key, value, None, **self.kwargs)
        assert out.shape == (1, offset, HEADS, DIM)
        for number, rows in zip(
            [n for n, size in enumerate(sizes) if size], torch.split(out[0], [size for size in sizes if size]), strict=True
        ):
            self.outputs[number].append(rows)
            self.done[number] += len(rows)

    def check(self) -> None:
        for (query, key, value), outputs in zip(self.tensors, self.outputs, strict=True):
            out = torch.cat(outputs) if outputs else query.new_empty(0, HEADS, DIM)
            expected = plain_attention(query[0], key[0], value[0], **self.kwargs)[: len(out)]
            assert torch.allclose(out, expected, atol=1e-12)


def plain_attention(
    query: Tensor, key: Tensor, value: Tensor, scaling: float | None = None, sliding_window: int | None = None, softcap: float | None = None
) -> Tensor:
    """Position by position: `[heads, length, dim]` each -> `[length, heads, dim]`."""
    out = torch.empty(query.shape[1], HEADS, DIM, dtype=query.dtype)
    for position in range(query.shape[1]):
        first = 0 if sliding_window is None else max(0, position - sliding_window + 1)
        for head in range(HEADS):
            shared = head // (HEADS // KV_HEADS)
            scores = key[shared, first : position + 1] @ query[head, position] * (scaling or DIM**-0.5)
            scores = scores if softcap is None else torch.tanh(scores / softcap) * softcap
            out[position, head] = torch.softmax(scores, 0) @ value[shared, first : position + 1]
    return out


KINDS: dict[str, dict[str, Any]] = {
    "full": {},
    "scaled": {"scaling": 0.7},
    "window": {"sliding_window": 4},
    "window of one": {"sliding_window": 1},
    "softcap": {"softcap": 1.5, "scaling": math.sqrt(DIM)},
    "softcap and window": {"softcap": 1.5, "sliding_window": 3},
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_packed_sequences_see_only_themselves(kind: dict[str, Any]) -> None:
    walk(Sequences([20, 15, 90, 20, 9], **kind))


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_flex_attention_sees_the_same(kind: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    # torch's own switch for debugging: without it each new shape is traced, for seconds.
    monkeypatch.setattr(torch.nn.attention.flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True, raising=False)
    walk(Sequences([20, 15, 90, 20, 9], FlexAttend(compiled=False), **kind))


def walk(sequences: Sequences) -> None:
    """Prompts in pieces of any size, then one token of each at a time."""
    sequences.step([6, 0, 70, 3, 1])
    sequences.step([5, 7, 1, 1, 1])
    for _ in range(5):
        sequences.step([1, 1, 1, 1, 1])
    sequences.check()


def test_rows_left_free_between_others_do_not_matter() -> None:
    sequences = Sequences([20] * 6)
    sequences.step([5, 4, 3, 6, 2, 7])
    sequences.cache.release(sequences.held[1], 4)
    sequences.step([1, 0, 1, 1, 1, 1])
    sequences.check()


def test_few_sequences_in_high_rows_go_one_by_one() -> None:
    sequences = Sequences([20] * 8)
    sequences.step([0, 0, 0, 0, 0, 3, 4, 5])
    sequences.step([0, 0, 0, 0, 0, 1, 1, 1])
    sequences.check()


@pytest.mark.parametrize("unsupported", ["s_aux", "position_bias"])
def test_attention_with_more_to_it_is_refused(unsupported: str) -> None:
    tensor = torch.zeros(1, KV_HEADS, 1, DIM)
    with pytest.raises(BaseModelUnusable):
        packed_attention(Layer(), tensor, tensor, tensor, None, None, None, None, **{unsupported: tensor})
    with pytest.raises(BaseModelUnusable):
        packed_attention(Layer(), tensor, tensor, tensor, tensor)


def test_a_step_remembers_how_the_layers_attended() -> None:
    held = KvCache(100).take(1)
    assert held is not None
    step = PackedStep([Span(held=held, start=0, tokens=1, offset=0)], CPU)
    with packing(step):
        query, key = torch.zeros(1, HEADS, 1, DIM), torch.zeros(1, KV_HEADS, 1, DIM)
        packed_attention(Layer(), query, key, key, None, sliding_window=3)
    assert step.kinds == [Kind(layer=0, scaling=DIM**-0.5, window=3, softcap=None)]
