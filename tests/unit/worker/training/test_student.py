"""The student: a LoRA on every linear layer but the head, and off again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from server.engine.base_model import BaseModel, adapted_layers
from tests.support.tiny_models import tiny_base, tiny_prompt
from tests.support.tiny_training import RECIPE
from worker.training.student import Student


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return tiny_base()


@pytest.fixture
def student(base: BaseModel) -> Iterator[Student]:
    made = Student(base.model, RECIPE, 5)
    yield made
    made.unload()


def states(student: Student) -> Tensor:
    with torch.no_grad():
        found: Tensor = student.body(torch.tensor([tiny_prompt(1).ids])).last_hidden_state
        return found


def random_factors(student: Student) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    torch.manual_seed(1)
    a, b = student.factors()
    return {name: torch.randn_like(t) for name, t in a.items()}, {name: torch.randn_like(t) for name, t in b.items()}


def test_every_linear_layer_but_the_head_is_adapted_and_only_that_trains(base: BaseModel) -> None:
    layers = adapted_layers(base.model)
    student = Student(base.model, RECIPE, 5)
    a, b = student.factors()
    assert list(a) == list(b) == sorted(layers)
    assert {name: (b[name].shape[0], a[name].shape[1]) for name in a} == {n: (x.out_features, x.in_features) for n, x in layers.items()}
    assert all(a[name].shape[0] == b[name].shape[1] == RECIPE.rank for name in a)
    trained = {id(p) for p in student.parameters().values()}
    assert {id(p) for p in base.model.parameters() if p.requires_grad} == trained
    student.unload()


def test_a_new_student_is_the_base_and_its_factors_are_the_seeds(base: BaseModel, student: Student) -> None:
    with student.bare():
        bare = states(student)
    assert torch.equal(states(student), bare)
    first = student.factors()
    student.unload()
    other = Student(base.model, RECIPE, 5)
    assert all(torch.equal(other.factors()[0][name], tensor) for name, tensor in first[0].items())
    other.unload()
    different = Student(base.model, RECIPE, 6)
    assert not any(torch.equal(different.factors()[0][name], tensor) for name, tensor in first[0].items())
    different.unload()


def test_worn_factors_act_and_come_back(student: Student) -> None:
    a, b = random_factors(student)
    bare = states(student)
    student.wear(a, b)
    assert not torch.allclose(states(student), bare)
    got_a, got_b = student.factors()
    assert all(torch.equal(got_a[name], a[name]) and torch.equal(got_b[name], b[name]) for name in a)
    with student.bare():
        assert torch.equal(states(student), bare)


def test_factors_are_copies(student: Student) -> None:
    a, b = student.factors()
    student.wear(*random_factors(student))
    assert not torch.equal(student.factors()[0][next(iter(a))], a[next(iter(a))])
    assert not any(tensor.any() for tensor in b.values())


def test_unload_leaves_the_base_as_it_was() -> None:
    base = tiny_base()
    before = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    student = Student(base.model, RECIPE, 5)
    student.wear(*random_factors(student))
    student.unload()
    after = base.model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert not any(parameter.requires_grad for parameter in base.model.parameters())


def test_an_alpha_that_is_no_whole_number_scales_as_serving_does() -> None:
    base = tiny_base()
    student = Student(base.model, replace(RECIPE, rank=4, alpha=1.5), 0)
    student.wear(*random_factors(student))
    a, b = student.factors()
    layer = next(iter(a))
    x = torch.randn(3, a[layer].shape[1])
    with student.bare():
        bare = base.model.get_submodule(layer)(x)
    got = base.model.get_submodule(layer)(x)
    student.unload()
    torch.testing.assert_close(got - bare, 1.5 / 4 * x @ a[layer].T @ b[layer].T, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_student_computes_and_learns_as_peft_does(dropout: float) -> None:
    """Same factors, same masks: same states, same gradients."""
    recipe = replace(RECIPE, rank=4, alpha=6, dropout=dropout)
    base = tiny_base()
    student = Student(base.model, recipe, 5)
    a, b = random_factors(student)
    student.wear(a, b)
    ids = torch.tensor([tiny_prompt(1).ids])
    student.train(True)
    torch.manual_seed(3)
    got = student.body(ids).last_hidden_state
    got.square().sum().backward()
    grads = {name: parameter.grad for name, parameter in student.parameters().items()}
    student.unload()
    config = LoraConfig(r=4, lora_alpha=6, lora_dropout=dropout, target_modules=sorted(adapted_layers(base.model)), task_type="CAUSAL_LM")
    peft = get_peft_model(base.model, config)
    named = dict(peft.named_parameters())
    with torch.no_grad():
        for name in a:
            named[f"base_model.model.{name}.lora_A.default.weight"].copy_(a[name])
            named[f"base_model.model.{name}.lora_B.default.weight"].copy_(b[name])
    peft.train()
    torch.manual_seed(3)
    wanted = base.model.base_model(ids).last_hidden_state  # PEFT's wrappers stand in it
    wanted.square().sum().backward()
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)
    for name, gradient in grads.items():
        layer, side = name.rsplit(".lora_", 1)
        theirs = named[f"base_model.model.{layer}.lora_{side.upper()}.default.weight"].grad
        torch.testing.assert_close(gradient, theirs, atol=1e-2, rtol=1e-3)
    peft.unload()
