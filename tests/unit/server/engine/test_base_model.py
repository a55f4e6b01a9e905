from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, Phi3Config, PretrainedConfig

from server.engine.base_model import PreparedBase, adapted_layers, context_limit, load_base, prepare_base
from server.errors import BaseModelNotFound, BaseModelUnusable, DeviceUnavailable
from tests.support import base_files
from tests.support.tiny_models import FAMILIES


@pytest.fixture
def prepared(tmp_path: Path) -> PreparedBase:
    return prepare_base(str(base_files.save(tmp_path / "local")), tmp_path / "models")


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a network connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_a_local_directory_is_used_in_place(prepared: PreparedBase, tmp_path: Path) -> None:
    assert (prepared.name, prepared.directory) == ("local", tmp_path / "local")


def _never(stage: str, done: int, total: int) -> None:
    pytest.fail("nothing was to be done")


def test_a_gguf_file_is_converted_and_loaded(tmp_path: Path, no_network: None) -> None:
    events: list[tuple[str, int, int]] = []
    file = base_files.write_gguf(tmp_path / "tiny.gguf")
    prepared = prepare_base(str(file), tmp_path / "models", lambda *event: events.append(event))
    assert prepared.directory.parent == tmp_path / "models"
    assert events[-1][0] == "fingerprint"
    assert prepare_base(str(file), tmp_path / "models", _never) == prepared
    base = load_base(prepared, dtype="float32")
    assert (base.eos_ids, base.context_limit) == (frozenset({1}), base_files.CONTEXT)


def test_a_loaded_base_is_frozen(prepared: PreparedBase, no_network: None) -> None:
    base = load_base(prepared, device="cpu", dtype="float64")
    assert (base.device, base.dtype, base.fingerprint) == (torch.device("cpu"), torch.float64, prepared.fingerprint)
    assert {parameter.dtype for parameter in base.model.parameters()} == {torch.float64}
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    assert not base.model.training
    assert base.model.config._attn_implementation == "sdpa"


def test_a_tokenizer_without_padding_pads_with_its_end(prepared: PreparedBase) -> None:
    base = load_base(prepared, dtype="float32")
    assert base.tokenizer.pad_token_id == base.model.config.pad_token_id == base.tokenizer.eos_token_id


@pytest.mark.parametrize("value", [1, [0, 1], None])
def test_every_end_of_sequence_id_ends_an_answer(tmp_path: Path, value: int | list[int] | None) -> None:
    model = base_files.model()
    assert model.generation_config is not None
    model.generation_config.eos_token_id = value
    model.save_pretrained(tmp_path / "local")
    base_files.tokenizer().save_pretrained(tmp_path / "local")
    base = load_base(prepare_base(str(tmp_path / "local"), tmp_path / "models"), dtype="float32")
    assert base.eos_ids == frozenset({1}) | frozenset([0] if isinstance(value, list) else [])


def test_loading_draws_no_bars(prepared: PreparedBase, capfd: pytest.CaptureFixture[str]) -> None:
    capfd.readouterr()
    load_base(prepared, dtype="float32")
    assert "it/s" not in capfd.readouterr().err


@pytest.mark.parametrize("family", FAMILIES)
def test_every_linear_layer_but_the_head_is_adapted(family: str) -> None:
    model = FAMILIES[family]()
    layers = adapted_layers(model)
    assert list(layers) == sorted(layers)
    assert all(dict(model.named_modules())[name] is linear for name, linear in layers.items())
    linear = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    assert set(layers) == linear - {"lm_head"}
    assert "model.layers.1.mlp.down_proj" in layers


LONG = {"rope_theta": 10000.0, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "rope_type": "longrope"}
SMALL: dict[str, Any] = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        (LlamaConfig(max_position_embeddings=100), 100),
        (LlamaConfig(max_position_embeddings=100, rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}), 100),
        (LlamaConfig(max_position_embeddings=100, rope_parameters={"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}), 100),
        (Phi3Config(**SMALL, max_position_embeddings=400, original_max_position_embeddings=100, rope_parameters=LONG), 100),
    ],
    ids=["default", "linear", "dynamic", "longrope"],
)
def test_the_context_ends_where_rope_would_change(config: PretrainedConfig, limit: int) -> None:
    assert context_limit(config) == limit


def test_rope_of_several_attention_kinds() -> None:
    config = FAMILIES["gemma3"]().config
    assert context_limit(config) == 512


def test_a_source_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BaseModelNotFound):
        prepare_base(str(tmp_path / "absent"), tmp_path / "models")


def test_an_empty_directory_is_no_model(tmp_path: Path, no_network: None) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(BaseModelUnusable):
        prepare_base(str(tmp_path / "empty"), tmp_path / "models")


def test_pickled_weights_are_not_read(prepared: PreparedBase) -> None:
    (prepared.directory / "model.safetensors").rename(prepared.directory / "pytorch_model.bin")
    with pytest.raises(BaseModelUnusable, match="safetensors"):
        load_base(prepared)


def test_a_damaged_directory_cannot_be_loaded(prepared: PreparedBase) -> None:
    (prepared.directory / "config.json").write_text("{}")
    with pytest.raises(BaseModelUnusable, match="cannot be loaded"):
        load_base(prepared, dtype="float32")


def test_truncated_weights_cannot_be_loaded(prepared: PreparedBase) -> None:
    weights = prepared.directory / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(BaseModelUnusable, match="cannot be loaded"):
        load_base(prepared, dtype="float32")


def test_weights_that_lack_a_tensor_are_not_filled_with_random_ones(prepared: PreparedBase) -> None:
    weights = prepared.directory / "model.safetensors"
    tensors = load_file(weights)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(BaseModelUnusable, match="cannot be loaded"):
        load_base(prepared, dtype="float32")


@pytest.mark.parametrize("tied", [True, False])
def test_a_tied_head_is_not_missing(tmp_path: Path, tied: bool) -> None:
    local = base_files.save(tmp_path / "local", tied=tied)
    base = load_base(prepare_base(str(local), tmp_path / "models"), dtype="float32")
    assert (base.model.lm_head.weight is base.model.model.embed_tokens.weight) == tied


def test_a_template_that_drops_turns_is_refused(tmp_path: Path) -> None:
    local = base_files.save(tmp_path / "local", chat_template="nothing")
    with pytest.raises(BaseModelUnusable, match="cannot be loaded"):
        load_base(prepare_base(str(local), tmp_path / "models"), dtype="float32")


def test_a_device_that_is_not_there(prepared: PreparedBase) -> None:
    with pytest.raises(DeviceUnavailable):
        load_base(prepared, device="cuda:99")
