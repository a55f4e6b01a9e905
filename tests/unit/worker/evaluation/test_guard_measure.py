"""How far a module bends the base's own answers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from server.engine.base_model import BaseModel
from server.engine.prompt import instruction_prompt
from server.engine.request import Scope
from server.modules.artefact import Artefact
from tests.support.oracle import Oracle
from tests.support.tiny_models import EOS, tiny_artefact, tiny_base
from worker.evaluation.guard_measure import guard_kl
from worker.synthesis.texts import TextPair
from worker.training.guard import GUARD

ANSWERS = [
    TextPair(kind=GUARD, context="", teacher_instruction=text, student_instruction=text, target=f"It is {i}{'!' * i}")
    for i, text in enumerate(("Who?", "Which of them?", "How many are there at all?"))
]


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return tiny_base()


def scaled(artefact: Artefact, size: float) -> Artefact:
    return replace(artefact, b={layer: b * size for layer, b in artefact.b.items()})


def test_a_module_of_zeros_bends_nothing_and_a_larger_one_more(base: BaseModel) -> None:
    before = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    module = tiny_artefact(base, 3, size=0.3)
    measured = [guard_kl(base, scaled(module, size), ANSWERS).guard_kl for size in (0.0, 0.1, 0.3, 1.0)]
    assert measured[0] == pytest.approx(0, abs=1e-6)
    assert 0 < measured[1] < measured[2] < measured[3]
    assert base.model.state_dict().keys() == before.keys()
    assert all(torch.equal(base.model.state_dict()[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("scope", Scope)
def test_it_is_the_mean_over_tokens_of_the_divergence_that_serving_has(base: BaseModel, scope: Scope) -> None:
    module = tiny_artefact(base, 3, size=0.3, scope=scope)
    oracle = Oracle(base)
    divergences = []
    for answer in ANSWERS:
        prompt = instruction_prompt(base.tokenizer, answer.student_instruction)
        target = [*base.tokenizer(answer.target, add_special_tokens=False)["input_ids"], EOS]
        p, q = (oracle.follow(prompt, target, worn).log_softmax(-1) for worn in (None, module))
        divergences.append((p.exp() * (p - q)).sum(-1))
    measured = guard_kl(base, module, ANSWERS)
    assert measured.guard_kl == pytest.approx(float(torch.cat(divergences).mean()), rel=1e-4)
    assert measured.figures() == {"guard_kl": measured.guard_kl, "questions": 3, "tokens": sum(map(len, divergences))}
    for bent, answer, divergence in zip(measured.answers, ANSWERS, divergences, strict=True):
        assert (bent.question, bent.tokens) == (answer.student_instruction, len(divergence))
        assert bent.guard_kl == pytest.approx(float(divergence.mean()), rel=1e-4)
