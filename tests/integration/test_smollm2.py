"""The real small base model: the default of every installation."""

from __future__ import annotations

import socket
from typing import Any

import pytest
import torch

from server.engine.base_model import DEFAULT_BASE, BaseModel, adapted_layers, load_base
from server.engine.fingerprint import fingerprint
from server.engine.prompt import answer_prompt
from tests.support.smollm2 import smollm2

SMOLLM2 = "698758f8e822b522dd77ed2e9a9c37564110894c2147e73154a608afe0d9ee4d"


def test_smollm2_is_smollm2() -> None:
    """Changes only if the model, its tokenizer or the prompt's fixed texts do: then every published module needs training again."""
    assert fingerprint(smollm2().directory) == SMOLLM2 == smollm2().fingerprint


def test_the_default_answers_a_question(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the network."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a network connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    base = load_base(smollm2(), device="cpu", dtype="float32")
    prompt = answer_prompt(base.tokenizer, "What is the capital of France?")
    with torch.no_grad():
        written = _greedy(base, list(prompt.ids), 8)
    assert "Paris" in base.tokenizer.decode(written)
    assert (base.name, base.context_limit, base.eos_ids) == (DEFAULT_BASE, 8192, frozenset({2}))
    assert len(adapted_layers(base.model)) == 30 * 7


def _greedy(base: BaseModel, ids: list[int], count: int) -> list[int]:
    written: list[int] = []
    for _ in range(count):
        written.append(int(base.model(input_ids=torch.tensor([ids + written])).logits[0, -1].argmax()))
    return written
