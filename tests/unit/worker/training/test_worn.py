"""What is worn under a training adds what its formula says, and leaves nothing behind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from server.engine.base_model import BaseModel, adapted_layers
from server.modules.artefact import Artefact
from tests.support.tiny_models import tiny_artefact, tiny_base
from tests.support.tiny_training import RECIPE
from worker.training.adapted import layers_to_train
from worker.training.recipe import Adapted
from worker.training.states import Worn, target_states
from worker.training.student import Student
from worker.training.worn import Wearing, like, module_weights, wearing, worn_extractor

IDS = torch.tensor([[256, 5, 6, 7], [256, 9, 8, 7], [256, 1, 2, 3]])


@pytest.fixture
def base() -> BaseModel:
    return tiny_base()


def folded(base: BaseModel, parts: Sequence[tuple[Artefact, Mapping[str, float]]], ids: Tensor) -> Tensor:
    """Logits of the model whose weights have every part folded in: slow, and plainly the formula."""
    layers = adapted_layers(base.model)
    own = {name: layer.weight.data for name, layer in layers.items()}
    for name, layer in layers.items():
        deltas = [weights.get(name, 1.0) * part.scaling * part.b[name] @ part.a[name] for part, weights in parts if name in part.a]
        layer.weight.data = own[name] + sum(deltas, torch.zeros(()))
    logits = logits_of(base, ids)
    for name, layer in layers.items():
        layer.weight.data = own[name]
    return logits


@torch.no_grad()
def logits_of(base: BaseModel, ids: Tensor) -> Tensor:
    logits: Tensor = base.model(input_ids=ids).logits
    return logits


def test_an_extractor_is_worn_with_its_weights(base: BaseModel) -> None:
    extractor = tiny_artefact(base, 1, extractor=True)
    assert extractor.composition is not None
    weights = {layer: extractor.composition.weights(layer)[1] for layer in extractor.composition.layers}
    with wearing(base.model, [worn_extractor(extractor, like(base))]):
        worn = logits_of(base, IDS)
    torch.testing.assert_close(worn, folded(base, [(extractor, weights)], IDS), atol=1e-4, rtol=1e-4)


def test_each_row_wears_its_own_or_none(base: BaseModel) -> None:
    modules = [tiny_artefact(base, seed) for seed in (1, 2)]
    worn = Wearing(modules, lambda layer: None, like(base))
    prompts, targets = [(256, 5, 6), (256, 9, 8), (256, 1, 2)], [(7, 1), (7, 2), (3, 3)]
    head: nn.Linear = base.model.get_output_embeddings()  # type: ignore[no-untyped-call]
    with wearing(base.model, [worn]), torch.no_grad():
        rows = Worn(of_rows=[1, -1, 0], tell=partial(setattr, worn, "runs"))
        together = head(target_states(base.model.base_model, prompts, targets, base.device, worn=rows)[-1]).view(3, 2, -1)
    expected: list[list[tuple[Artefact, Mapping[str, float]]]] = [[(modules[1], {})], [], [(modules[0], {})]]
    for row, parts in enumerate(expected):
        whole = torch.tensor([[*prompts[row], *targets[row]]])
        torch.testing.assert_close(together[row], folded(base, parts, whole)[0, 2:4], atol=1e-4, rtol=1e-4)


def test_layers_that_are_not_adapted_stay_bare(base: BaseModel) -> None:
    module = tiny_artefact(base, 1, targets=3)
    worn = Wearing([module], lambda layer: None, like(base))
    with wearing(base.model, [worn]):
        found = logits_of(base, IDS)
    torch.testing.assert_close(found, folded(base, [(module, {})], IDS), atol=1e-4, rtol=1e-4)


def test_afterwards_the_model_is_as_it_was_even_after_an_error(base: BaseModel) -> None:
    layers, before = adapted_layers(base.model), logits_of(base, IDS)
    worn = Wearing([tiny_artefact(base, 1)], lambda layer: None, like(base))
    with pytest.raises(KeyboardInterrupt), wearing(base.model, [worn]):
        raise KeyboardInterrupt
    assert adapted_layers(base.model) == layers
    assert torch.equal(logits_of(base, IDS), before)


def test_without_anything_to_wear_the_layers_are_not_touched(base: BaseModel) -> None:
    layers = adapted_layers(base.model)
    with wearing(base.model, []):
        assert adapted_layers(base.model) == layers


def test_loras_of_several_shapes_are_refused(base: BaseModel) -> None:
    with pytest.raises(ValueError, match="one rank"):
        Wearing([tiny_artefact(base, 1), tiny_artefact(base, 2, rank=2)], lambda layer: None, like(base))


@pytest.mark.parametrize("adapted", ["all", "attention"])
def test_a_student_over_a_worn_extractor_is_what_serving_composes(base: BaseModel, adapted: Adapted) -> None:
    """The student's own product counts by w_km, and bare it is the base with the extractor."""
    extractor, whole_module = tiny_artefact(base, 1, extractor=True), tiny_artefact(base, 2)
    layers = layers_to_train(base.model, adapted)
    module = replace(whole_module, a={name: whole_module.a[name] for name in layers}, b={name: whole_module.b[name] for name in layers})
    assert extractor.composition is not None
    km, ke = ({layer: extractor.composition.weights(layer)[side] for layer in extractor.a} for side in (0, 1))
    prompt, target = (256, 5, 6), (7, 9)
    whole = torch.tensor([[*prompt, *target]])
    scaled = {name: tensor * module.scaling for name, tensor in module.b.items()}
    with wearing(base.model, [worn_extractor(extractor, like(base))]):
        student = Student(base.model, RECIPE, 0, module_weights(extractor, like(base)), adapted=adapted)
        student.wear(module.a, scaled)
        student.train(False)
        head: nn.Linear = base.model.get_output_embeddings()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            worn = head(target_states(student.body, [prompt], [target], base.device)[-1])
            with student.bare():
                bare = head(target_states(student.body, [prompt], [target], base.device)[-1])
        student.unload()
    expected = folded(base, [(extractor, ke), (module, km)], whole)[0, 2:4]
    torch.testing.assert_close(worn, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(bare, folded(base, [(extractor, ke)], whole)[0, 2:4], atol=1e-4, rtol=1e-4)
