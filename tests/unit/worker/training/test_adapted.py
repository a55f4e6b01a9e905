"""Which linear layers a module is trained on."""

from __future__ import annotations

import pytest
from torch import nn
from transformers import PreTrainedModel

from server.engine.base_model import adapted_layers
from server.errors import InvalidInput
from tests.support.tiny_models import tiny_base
from worker.training.adapted import layers_to_train
from worker.training.recipe import Adapted


@pytest.fixture(scope="module")
def llama() -> PreTrainedModel:
    return tiny_base().model


def ends(layers: dict[str, nn.Linear]) -> set[str]:
    return {name.rpartition(".")[2] for name in layers}


def test_all_are_those_that_are_served(llama: PreTrainedModel) -> None:
    assert layers_to_train(llama, "all") == adapted_layers(llama)


def test_of_either_kind(llama: PreTrainedModel) -> None:
    attention, mlp = layers_to_train(llama, "attention"), layers_to_train(llama, "mlp")
    assert ends(attention) == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert ends(mlp) == {"gate_proj", "up_proj", "down_proj"}
    assert attention | mlp == adapted_layers(llama)
    assert list(mlp) == sorted(mlp)


def test_the_upper_half_of_the_blocks(llama: PreTrainedModel) -> None:
    upper = layers_to_train(llama, "upper")
    assert upper == {name: layer for name, layer in adapted_layers(llama).items() if ".layers.1." in name}


def test_names_of_fused_layers() -> None:
    model = tiny_base("phi3").model
    assert ends(layers_to_train(model, "attention")) == {"qkv_proj", "o_proj"}
    assert ends(layers_to_train(model, "mlp")) == {"gate_up_proj", "down_proj"}


@pytest.mark.parametrize("adapted", ["attention", "mlp", "upper"])
def test_names_that_do_not_tell_are_refused(monkeypatch: pytest.MonkeyPatch, llama: PreTrainedModel, adapted: Adapted) -> None:
    monkeypatch.setattr("worker.training.adapted.adapted_layers", lambda model: {"mixer": nn.Linear(2, 2), "other": nn.Linear(2, 2)})
    with pytest.raises(InvalidInput, match=f"do not tell which are its {adapted} ones"):
        layers_to_train(llama, adapted)
