"""States of the positions that predict targets, with and without a shared prefix."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from server.engine.prompt import Prompt
from tests.support.tiny_models import tiny_artefact, tiny_base
from worker.training import packing
from worker.training.recipe import Reading
from worker.training.states import prompt_states, target_states
from worker.training.worn import Wearing, like, taken_off, wearing

CPU = torch.device("cpu")
PROMPTS = [(1, *range(20, 20 + n), *range(60, 60 + extra)) for n, extra in ((12, 1), (12, 6), (12, 3))]
TARGETS = [(40, 41), (42,), (43, 44, 45)]


def run(family: str, prompts: list[tuple[int, ...]]) -> tuple[list[Tensor], Tensor]:
    base = tiny_base(family, torch.float64)
    embeddings = next(base.model.get_input_embeddings().parameters()).requires_grad_(True)
    got = target_states(base.model.base_model, prompts, TARGETS, CPU)
    (gradient,) = torch.autograd.grad(torch.stack([state.square().sum() for state in got]).sum(), embeddings)
    return [state.detach() for state in got], gradient


def alone(family: str, prompts: list[tuple[int, ...]]) -> tuple[list[Tensor], Tensor]:
    """The same by the model's own attention, row by row."""
    base = tiny_base(family, torch.float64)
    embeddings = next(base.model.get_input_embeddings().parameters()).requires_grad_(True)
    runs = [base.model.base_model(torch.tensor([p + t]), output_hidden_states=True) for p, t in zip(prompts, TARGETS, strict=True)]
    got = [
        torch.cat([run.hidden_states[layer][0, len(prompt) - 1 : -1] for run, prompt in zip(runs, prompts, strict=True)])
        for layer in range(1, len(runs[0].hidden_states))
    ]
    (gradient,) = torch.autograd.grad(torch.stack([state.square().sum() for state in got]).sum(), embeddings)
    return [state.detach() for state in got], gradient


@pytest.mark.parametrize("least", [4, 1000], ids=["shared", "apart"])
@pytest.mark.parametrize("family", ["llama", "phi3", "qwen3", "mistral", "gemma3"])
def test_a_pack_gives_the_states_and_gradients_of_rows_alone(family: str, least: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "MIN_SHARED", least)
    packed, wanted = run(family, PROMPTS), alone(family, PROMPTS)
    torch.testing.assert_close(packed[0], wanted[0], atol=1e-9, rtol=1e-9)
    # The models' norms compute in float32 whatever their dtype, so gradients that are summed in another order differ by that.
    torch.testing.assert_close(packed[1], wanted[1], atol=1e-4, rtol=1e-4)


def test_the_model_attends_in_its_own_way_afterwards() -> None:
    base = tiny_base()
    before = base.model.config._attn_implementation
    target_states(base.model.base_model, PROMPTS, TARGETS, CPU)
    assert base.model.config._attn_implementation == before


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


BARES = [(1, *range(30, 45)), (1, *range(70, 77)), (1,)]


@pytest.mark.parametrize("bares", [BARES, BARES[:1] * 3, [(), *BARES[1:]]], ids=["different", "alike", "one-empty"])
@pytest.mark.parametrize("family", ["llama", "phi3", "qwen3", "mistral", "gemma3"])
def test_bare_segments_are_read_by_the_bare_base(family: str, bares: list[tuple[int, ...]]) -> None:
    """Rows together as each alone: its bare segment first, then the rest over that with what is worn."""
    base = tiny_base(family, torch.float64)
    body = base.model.base_model
    prompts = [Prompt(bare=bare, adapted=adapted) for bare, adapted in zip(bares, PROMPTS, strict=True)]
    worn = Wearing([tiny_artefact(base, 2, size=0.3)], lambda layer: None, like(base))
    with wearing(base.model, [worn]):
        unworn = partial(taken_off, [worn])
        got = prompt_states(body, prompts, TARGETS, CPU, unworn=unworn)
        wanted = []
        for prompt, target in zip(prompts, TARGETS, strict=True):
            cache = DynamicCache()
            with taken_off([worn]):
                if prompt.bare:
                    body(torch.tensor([prompt.bare]), past_key_values=cache, use_cache=True)
            rest = body(torch.tensor([prompt.adapted + target]), past_key_values=cache, use_cache=True).last_hidden_state[0]
            wanted.append(rest[len(prompt.adapted) - 1 : -1])
    torch.testing.assert_close(got[-1], torch.cat(wanted), atol=1e-6, rtol=1e-6)


def test_no_gradient_flows_into_what_the_bare_base_reads() -> None:
    base = tiny_base("llama", torch.float64)
    embeddings = next(base.model.get_input_embeddings().parameters()).requires_grad_(True)
    prompts = [Prompt(bare=bare, adapted=adapted) for bare, adapted in zip(BARES, PROMPTS, strict=True)]
    states = prompt_states(base.model.base_model, prompts, TARGETS, CPU, unworn=nullcontext)
    (gradient,) = torch.autograd.grad(states[-1].square().sum(), embeddings)
    assert gradient[20].any()
    assert not gradient[32:40].any()
    assert not gradient[70:77].any()
