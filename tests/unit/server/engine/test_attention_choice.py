from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from server.engine.attend import sdpa
from server.engine.attend_flex import FlexAttend
from server.engine.attention_choice import FLEX, SDPA, Features, choose, features, implementation
from tests.support.tiny_models import tiny_base

CAPPED_ON_A_GPU = Features(device="cuda", dtype=torch.bfloat16, head_dim=256, softcap=True, capability=(9, 0), triton=True)


def test_a_gpu_caps_scores_by_flex_attention() -> None:
    assert choose("auto", CAPPED_ON_A_GPU).name == FLEX


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({"device": "cpu"}, "CUDA devices alone"),
        ({"softcap": False}, "all that this model asks for"),
        ({"triton": False}, "Triton"),
        ({"capability": (7, 5)}, "7.5"),
        ({"dtype": torch.float64}, "float64"),
        ({"head_dim": 8}, "8 wide"),
    ],
)
def test_everything_else_is_served_by_sdpa_with_the_reason(other: dict[str, object], reason: str) -> None:
    choice = choose("auto", replace(CAPPED_ON_A_GPU, **other))  # type: ignore[arg-type]
    assert choice.name == SDPA
    assert reason in choice.reason


def test_what_is_configured_is_taken() -> None:
    for name in (SDPA, FLEX):
        assert choose(name, CAPPED_ON_A_GPU).name == name
        assert choose(name, CAPPED_ON_A_GPU).reason == "configured"


def test_what_is_configured_and_cannot_run_is_said() -> None:
    choice = choose(FLEX, replace(CAPPED_ON_A_GPU, triton=False, softcap=False))
    assert (choice.name, choice.reason) == (SDPA, "flex is configured, but Triton is not installed")


def test_features_are_the_models() -> None:
    found = features(tiny_base("qwen3"))
    assert (found.device, found.dtype, found.head_dim, found.softcap, found.capability) == ("cpu", torch.float32, 16, False, (0, 0))
    capped = tiny_base()
    capped.model.config.attn_logit_softcapping = 50.0
    assert features(capped).softcap


def test_names_have_implementations() -> None:
    assert implementation(SDPA, torch.device("cpu")) is sdpa
    assert isinstance(implementation(FLEX, torch.device("cpu")), FlexAttend)
