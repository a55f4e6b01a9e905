"""Scope in training: what the trainer computes is what the engine serves, alone or over a worn extractor."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from server.engine.base_model import BaseModel
from server.engine.options import EngineOptions
from server.engine.prompt import answer_prompt, plain_ids
from server.engine.request import ArtefactRef, EngineRequest, Scope
from server.engine.score import score_batch
from server.errors import InvalidInput
from server.modules.artefact import Artefact, write_artefact
from tests.support.tiny_models import EOS, tiny_artefact, tiny_base
from tests.support.tiny_training import RECIPE
from worker.training.blockwise import nll_from_states
from worker.training.pipeline import TrainingSpec, train
from worker.training.recipe import ScopeName
from worker.training.states import head_of
from worker.training.student import Student
from worker.training.worn import like, module_weights, wearing, worn_extractor

PASSAGES = [(), ("The bridge is green.",), ("Nine metres is the bridge long.", "The gate is red.")]


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return tiny_base()


def written(directory: Path, artefact: Artefact) -> ArtefactRef:
    a, b, manifest = artefact.a, artefact.b, artefact.manifest
    return write_artefact(directory, a=a, b=b, manifest=manifest, base_model_name="tiny", composition=artefact.composition)


@contextmanager
def student_of(base: BaseModel, scope: ScopeName, module: Artefact, extractor: Artefact | None) -> Iterator[Student]:
    worn = [] if extractor is None else [worn_extractor(extractor, like(base))]
    weight_of = None if extractor is None else module_weights(extractor, like(base))
    with wearing(base.model, worn):
        student = Student(base.model, replace(RECIPE, scope=scope, alpha=module.manifest.alpha), 0, weight_of, worn)
        student.wear(module.a, module.b)
        student.train(False)
        try:
            yield student
        finally:
            student.unload()


@pytest.mark.parametrize("worn", [False, True], ids=["alone", "over-an-extractor"])
@pytest.mark.parametrize("scope", ["all", "answer"])
def test_the_engine_serves_what_was_trained(base: BaseModel, tmp_path: Path, scope: ScopeName, worn: bool) -> None:
    """Prompts with and without passages in one micro-batch."""
    module = tiny_artefact(base, 1, size=0.3, scope=Scope(scope))
    extractor = tiny_artefact(base, 2, size=0.3, scope=Scope(scope), extractor=True) if worn else None
    prompts = [answer_prompt(base.tokenizer, f"What is {i}?", passages) for i, passages in enumerate(PASSAGES)]
    targets = [(*plain_ids(base.tokenizer, f"It is {'very ' * i}long."), EOS) for i in range(len(prompts))]
    with student_of(base, scope, module, extractor) as student, torch.no_grad():
        states = student.states(prompts, targets, base.device)[-1]
        tokens = torch.tensor([token for target in targets for token in target])
        together = float(nll_from_states(states, tokens, head_of(base.model)))
    refs = written(tmp_path / "module", module), None if extractor is None else written(tmp_path / "extractor", extractor)
    requests = [
        EngineRequest(request_id=str(i), tenant="t", prompt=prompt, module=refs[0], extractor=refs[1]) for i, prompt in enumerate(prompts)
    ]
    scores = score_batch(base, [(request, [target]) for request, target in zip(requests, targets, strict=True)], options=EngineOptions())
    served = [logprob for found in scores for logprob in found[0].logprobs]
    assert together == pytest.approx(-sum(served) / len(served), rel=1e-4)


def test_the_scopes_differ(base: BaseModel) -> None:
    """Else the test above would prove nothing."""
    module = tiny_artefact(base, 1, size=0.3)
    prompt = answer_prompt(base.tokenizer, "What?", PASSAGES[2])
    found = {}
    for scope in ("all", "answer"):
        with student_of(base, scope, module, None) as student, torch.no_grad():
            found[scope] = student.states([prompt], [(65, 66)], base.device)[-1]
    assert not torch.allclose(found["all"], found["answer"], atol=1e-2)


def test_bare_within_bare_stays_bare(base: BaseModel) -> None:
    """The gate measures the untrained student so, in any scope."""
    prompt = answer_prompt(base.tokenizer, "What?", PASSAGES[1])
    with student_of(base, "answer", tiny_artefact(base, 1), None) as student, torch.no_grad():
        with student.bare():
            bare = student.states([prompt], [(65, 66)], base.device)[-1]
        worn = student.states([prompt], [(65, 66)], base.device)[-1]
        assert all(parameter.requires_grad for parameter in student.parameters().values())
        assert len(student.parameters()) > 0
    expected = base.model.base_model(torch.tensor([[*prompt.ids, 65, 66]])).last_hidden_state[0, len(prompt) - 1 : -1]
    torch.testing.assert_close(bare, expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(worn, expected, atol=1e-2)


def test_an_extractor_of_another_scope_is_not_worn(base: BaseModel, tmp_path: Path) -> None:
    extractor = written(tmp_path / "extractor", tiny_artefact(base, 2, scope=Scope.ANSWER, extractor=True))
    spec = TrainingSpec(
        text="A text.",
        title="T",
        revision_sha256="1" * 64,
        recipe=RECIPE,
        seed=0,
        directory=tmp_path / "job",
        attempt=1,
        extractor=extractor,
    )
    with pytest.raises(InvalidInput, match="has scope `answer` and the recipe scope `all`: train the module with scope `answer`"):
        train(base, spec, EngineOptions(), lambda question: [], lambda *report: None, lambda: False, lambda gate: None)
