from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from benchmarks.serving import bases
from benchmarks.serving.bases import RANDOM_8B, find_base, random_base
from server.engine.base_model import PreparedBase
from tests.support.byte_tokenizer import byte_tokenizer

LLAMA_3_1_8B = 8_030_261_248
"""Parameters."""


def test_a_gpu_without_a_model_gets_llamas_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = PreparedBase(name="smollm2", directory=Path("smollm2"), fingerprint="0" * 64)
    monkeypatch.setattr(bases, "prepare_base", lambda *_: prepared)
    found = find_base(None, "cuda", torch.bfloat16)
    assert (found.random, found.name) == (True, RANDOM_8B)
    assert not find_base(None, "cpu", torch.float32).random
    assert find_base("own-model", "cuda", torch.bfloat16).name == "smollm2"


def test_the_shapes_are_those_of_llama_3_1_8b() -> None:
    base = random_base(byte_tokenizer(), LlamaConfig(**bases._LLAMA_8B), "meta", torch.bfloat16)
    assert sum(weight.numel() for weight in base.model.parameters()) == LLAMA_3_1_8B
    assert (base.dtype, base.context_limit) == (torch.bfloat16, 8192)
    assert torch.get_default_dtype() == torch.float32
