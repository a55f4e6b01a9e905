from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from server.engine import prompt
from server.engine.fingerprint import architecture, fingerprint, tokenizer_facts, weight_files
from server.errors import BaseModelUnusable
from tests.support import base_files

WEIGHTS = "model.safetensors"
EMBEDDING, HEAD, QUERY = "model.embed_tokens.weight", "lm_head.weight", "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return base_files.save(tmp_path / "base")


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(directory: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(directory / WEIGHTS).items()}
    save_file(change(tensors), directory / WEIGHTS, metadata={"format": "pt"})


def test_a_model_saved_again_is_the_same_model(base: Path, tmp_path: Path) -> None:
    again = tmp_path / "elsewhere"
    AutoModelForCausalLM.from_pretrained(base, dtype="auto").save_pretrained(again)
    AutoTokenizer.from_pretrained(base).save_pretrained(again)
    edit_json(again / "config.json", transformers_version="5.17.0", _name_or_path="/somewhere", use_cache=False)
    assert fingerprint(again) == fingerprint(base)


def test_a_model_in_several_files_is_the_same_model(base: Path, tmp_path: Path) -> None:
    sharded = tmp_path / "sharded"
    AutoModelForCausalLM.from_pretrained(base, dtype="auto").save_pretrained(sharded, max_shard_size="20KB")
    AutoTokenizer.from_pretrained(base).save_pretrained(sharded)
    assert len(weight_files(sharded)) > 2
    assert fingerprint(sharded) == fingerprint(base)


def test_files_that_transformers_does_not_read_do_not_count(base: Path) -> None:
    before = fingerprint(base)
    save_file({"stray": torch.ones(1)}, base / "stray.safetensors")
    (base / "README.md").write_text("notes")
    assert fingerprint(base) == before


def test_a_tied_head_counts_once(tmp_path: Path) -> None:
    base = base_files.save(tmp_path / "tied", tied=True)
    before = fingerprint(base)
    edit_weights(base, lambda tensors: tensors | {HEAD: tensors[EMBEDDING].clone()})
    assert fingerprint(base) == before
    edit_weights(base, lambda tensors: tensors | {HEAD: tensors[EMBEDDING] + 1})
    assert fingerprint(base) != before


WEIGHT_CHANGES: dict[str, Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]] = {
    "one element": lambda t: t | {QUERY: torch.where(t[QUERY] == t[QUERY].max(), 0, t[QUERY])},
    "dtype": lambda t: {name: tensor.float() for name, tensor in t.items()},
    "transposed": lambda t: t | {QUERY: t[QUERY].T.contiguous()},
    "renamed": lambda t: {name.replace("q_proj", "qq_proj"): tensor for name, tensor in t.items()},
    "one less": lambda t: {name: tensor for name, tensor in t.items() if name != QUERY},
    "one more": lambda t: t | {"bias": torch.ones(1)},
}


@pytest.mark.parametrize("change", WEIGHT_CHANGES.values(), ids=WEIGHT_CHANGES)
def test_every_tensor_counts(base: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    before = fingerprint(base)
    edit_weights(base, change)
    assert fingerprint(base) != before


@pytest.mark.parametrize(
    "changes",
    [
        {"num_attention_heads": 2},
        {"rms_norm_eps": 1e-5},
        {"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}},
        {"max_position_embeddings": 512},
        {"hidden_act": "gelu"},
        {"tie_word_embeddings": True},
        {"model_type": "mistral"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_the_architecture_counts(base: Path, changes: dict[str, Any]) -> None:
    before = fingerprint(base)
    edit_json(base / "config.json", **changes)
    assert fingerprint(base) != before


def _tokenizer(base: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = base / "tokenizer.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def _swap_ids(content: dict[str, Any]) -> None:
    vocabulary = content["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]


def _write(path: Path, text: str) -> None:
    path.write_text(text)


TOKENIZER_CHANGES: dict[str, Callable[[Path], None]] = {
    "vocabulary": lambda base: _tokenizer(base, _swap_ids),
    "merges": lambda base: _tokenizer(base, lambda content: content["model"].update(merges=[["t", "h"]])),
    "digits one by one": lambda base: _tokenizer(base, lambda content: content.update(normalizer={"type": "Lowercase"})),
    "end of sequence": lambda base: edit_json(base / "tokenizer_config.json", eos_token="<s>"),
    "chat template": lambda base: _write(base / "chat_template.jinja", base_files.TEMPLATE + " "),
    "no chat template": lambda base: (base / "chat_template.jinja").unlink(),
}


@pytest.mark.parametrize("change", TOKENIZER_CHANGES.values(), ids=TOKENIZER_CHANGES)
def test_the_tokenizer_counts(base: Path, change: Callable[[Path], None]) -> None:
    before = fingerprint(base)
    change(base)
    assert fingerprint(base) != before


@pytest.mark.parametrize(
    ("constant", "value"),
    [("SYSTEM", "Be brief."), ("ANSWER_BARE", "Answer."), ("ANSWER_PASSAGES", "Answer."), ("TEMPLATE_ARGUMENTS", {})],
)
def test_the_prompts_fixed_texts_count(base: Path, monkeypatch: pytest.MonkeyPatch, constant: str, value: Any) -> None:
    before = fingerprint(base)
    monkeypatch.setattr(prompt, constant, value)
    assert fingerprint(base) != before


def test_a_model_without_a_template_is_known_by_the_plain_one(tmp_path: Path) -> None:
    assert tokenizer_facts(base_files.tokenizer(None))["chat_template"] == prompt.PLAIN_TEMPLATE


def test_what_is_described() -> None:
    described = architecture(base_files.model().config)
    assert described["model_type"] == "llama"
    assert described["hidden_size"] == base_files.HIDDEN
    assert "sliding_window" not in described
    assert tokenizer_facts(base_files.tokenizer())["merges"] == [list(pair) for pair in base_files.MERGES]


def test_progress_follows_the_tensors(base: Path) -> None:
    seen: list[tuple[int, int]] = []
    fingerprint(base, lambda done, total: seen.append((done, total)))
    size = (base / WEIGHTS).stat().st_size
    assert seen[-1] == (size, size)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def _remove(name: str) -> Callable[[Path], None]:
    return lambda base: (base / name).unlink()


def _damaged_index(base: Path) -> None:
    (base / "model.safetensors.index.json").write_text("{}")


def _index_of_absent_files(base: Path) -> None:
    (base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-2.safetensors"}}))


@pytest.mark.parametrize(
    "damage",
    [_remove(WEIGHTS), _remove("config.json"), _damaged_index, _index_of_absent_files],
    ids=["weights", "config", "index", "shards"],
)
def test_an_incomplete_directory_is_unusable(base: Path, damage: Callable[[Path], None]) -> None:
    damage(base)
    with pytest.raises(BaseModelUnusable, match="base model"):
        fingerprint(base)


def test_truncated_weights_are_unusable(base: Path) -> None:
    (base / WEIGHTS).write_bytes((base / WEIGHTS).read_bytes()[:-10])
    with pytest.raises(BaseModelUnusable):
        fingerprint(base)
