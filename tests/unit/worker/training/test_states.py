"""States of the positions that predict targets, with and without a shared prefix."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.support.tiny_models import tiny_base
from worker.training import states
from worker.training.recipe import Reading
from worker.training.states import common_length, target_states

CPU = torch.device("cpu")
PROMPTS = [(1, *range(20, 20 + n), *range(60, 60 + extra)) for n, extra in ((12, 1), (12, 6), (12, 3))]
TARGETS = [(40, 41), (42,), (43, 44, 45)]


def run(family: str, prompts: list[tuple[int, ...]]) -> tuple[list[Tensor], Tensor]:
    base = tiny_base(family, torch.float64)
    embeddings = next(base.model.get_input_embeddings().parameters()).requires_grad_(True)
    got = target_states(base.model.base_model, prompts, TARGETS, CPU)
    (gradient,) = torch.autograd.grad(torch.stack([state.square().sum() for state in got]).sum(), embeddings)
    return [state.detach() for state in got], gradient


@pytest.mark.parametrize("family", ["llama", "phi3", "qwen3", "mistral", "gemma3"])
def test_a_shared_prefix_changes_neither_states_nor_gradients(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert common_length(PROMPTS) == 13
    shared = run(family, PROMPTS)
    monkeypatch.setattr(states, "MIN_SHARED", 1000)
    apart = run(family, PROMPTS)
    torch.testing.assert_close(shared[0], apart[0], atol=1e-9, rtol=1e-9)
    # The models' norms compute in float32 whatever their dtype, so gradients that are summed in another order differ by that.
    torch.testing.assert_close(shared[1], apart[1], atol=1e-4, rtol=1e-4)


def test_states_are_those_before_each_target_token() -> None:
    base = tiny_base("llama", torch.float64)
    got = target_states(base.model.base_model, PROMPTS[:1], TARGETS[:1], CPU)[-1]
    whole = base.model.base_model(torch.tensor([PROMPTS[0] + TARGETS[0]])).last_hidden_state[0]
    torch.testing.assert_close(got, whole[len(PROMPTS[0]) - 1 : -1])


def test_or_those_of_each_target_token_and_of_the_embeddings() -> None:
    base = tiny_base("llama", torch.float64)
    got = target_states(base.model.base_model, PROMPTS, TARGETS, CPU, reading=Reading(positions="unshifted", embeddings=True))
    for layer, found in enumerate(got):
        alone = [base.model.base_model(torch.tensor([p + t]), output_hidden_states=True) for p, t in zip(PROMPTS, TARGETS, strict=True)]
        wanted = [one.hidden_states[layer][0, len(prompt) :] for one, prompt in zip(alone, PROMPTS, strict=True)]
        torch.testing.assert_close(found, torch.cat(wanted), atol=1e-6, rtol=1e-6)
    assert len(got) == 3
    torch.testing.assert_close(got[0], base.model.get_input_embeddings()(torch.tensor([token for target in TARGETS for token in target])))


@pytest.mark.parametrize(("prompts", "length"), [([(1, 2, 3)], 0), ([(1, 2), (1, 2)], 1), ([(1, 2), (3, 4)], 0), ([(1,), (1, 2)], 0)])
def test_each_prompt_keeps_its_last_token(prompts: list[tuple[int, ...]], length: int) -> None:
    assert common_length(prompts) == length
