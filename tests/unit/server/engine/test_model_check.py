from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import Llama4TextConfig, PreTrainedModel, Qwen3NextConfig, Qwen3NextForCausalLM
from transformers.models.llama4.modeling_llama4 import Llama4ForCausalLM

from server.engine import runner
from server.engine.attend import Kind, Seen, sdpa
from server.engine.attention_choice import FLEX, SDPA, Choice
from server.engine.batch_engine import BatchEngine
from server.engine.decode_step import DecodeStep
from server.engine.options import EngineOptions
from tests.support.tiny_models import FAMILIES, VOCABULARY, base_of, tiny_base

SHAPE: dict[str, Any] = {
    "vocab_size": 260,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
}


def refused(model: PreTrainedModel) -> bool:
    base = base_of(model.eval().requires_grad_(False))  # type: ignore[no-untyped-call]
    modules, attention = dict(model.named_modules()), model.config._attn_implementation
    with pytest.raises(ValueError, match="cannot serve"):
        BatchEngine(base, EngineOptions())
    assert model.config._attn_implementation == attention
    return dict(model.named_modules()) == modules


@pytest.mark.parametrize("family", FAMILIES)
def test_the_families_pass(family: str) -> None:
    BatchEngine(tiny_base(family), EngineOptions()).close()


def test_linear_attention_is_refused() -> None:
    config = Qwen3NextConfig(
        **SHAPE,
        num_experts=2,
        num_experts_per_tok=1,
        moe_intermediate_size=8,
        shared_expert_intermediate_size=8,
        layer_types=["linear_attention", "full_attention"],
        linear_num_value_heads=2,
        linear_num_key_heads=2,
    )
    assert refused(Qwen3NextForCausalLM(config))


def test_chunked_attention_is_refused() -> None:
    config = Llama4TextConfig(**SHAPE, num_local_experts=2, moe_layers=[], intermediate_size_mlp=32, attention_chunk_size=16)
    assert refused(Llama4ForCausalLM(config))


def test_a_model_that_computes_otherwise_is_refused() -> None:
    base = tiny_base()

    class Shifting(nn.Module):
        """An output that depends on the length of the packed row, as a model's own way of padding might."""

        def __init__(self, norm: nn.Module) -> None:
            super().__init__()
            self.norm = norm

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.norm(x)
            return out + x.shape[1]

    base.model.model.norm = Shifting(base.model.model.norm)
    assert refused(base.model)


def test_an_implementation_that_computes_otherwise_gives_way_to_sdpa(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def wrong(query: Tensor, key: Tensor, value: Tensor, seen: Seen, kind: Kind, /) -> Tensor:
        return sdpa(query, key, value, seen, replace(kind, scaling=2 * kind.scaling))

    monkeypatch.setattr(runner, "choose", lambda *_: Choice(name=FLEX, reason="for this test"))
    monkeypatch.setattr(runner, "implementation", lambda name, _: sdpa if name == SDPA else wrong)
    with caplog.at_level(logging.WARNING):
        engine = BatchEngine(tiny_base(), EngineOptions())
    engine.close()
    assert engine.runner.attention.name == SDPA
    assert "flex did not compute" in engine.runner.attention.reason
    assert "attention by flex in shapes as they come does not compute this model as it should" in caplog.messages


def test_fixed_shapes_that_compute_otherwise_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DecodeStep, "compute", lambda step: torch.zeros(step.shape.lanes, VOCABULARY))
    engine = BatchEngine(tiny_base(), EngineOptions(static_decode=True))
    engine.close()
    assert engine.runner.decoding is None


def test_a_hidden_window_is_refused() -> None:
    base = tiny_base("llama")
    base.model.config.sliding_window = 8
    assert refused(base.model)
