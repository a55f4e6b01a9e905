"""The folded export against PEFT, in float64: base + two weighted adapters == base + the one exported adapter."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from server.engine.base_model import adapted_layers
from server.engine.request import Scope
from server.errors import ModuleWrongBase, ScopeNotExportable
from server.modules.artefact import Artefact
from server.modules.composition import Composition, ones
from server.modules.export import export_folded
from tests.support.tiny_models import tiny_artefact, tiny_base

BASE = tiny_base(dtype=torch.float64)
IDS = torch.arange(3, 19)[None]


def weighted_logits(parts: list[tuple[Artefact, dict[str, float]]]) -> Tensor:
    """What the composition means, written out: y = W x + sum of w s B A x, by hooks on the linear layers."""
    hooks = [linear.register_forward_hook(_adding(name, parts)) for name, linear in adapted_layers(BASE.model).items()]
    try:
        return logits(BASE.model)
    finally:
        for hook in hooks:
            hook.remove()


def _adding(name: str, parts: list[tuple[Artefact, dict[str, float]]]) -> Callable[[nn.Module, tuple[Tensor], Tensor], Tensor]:
    def hook(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        for part, weights in parts:
            if name in part.a:
                output = output + weights.get(name, 1.0) * part.scaling * (inputs[0] @ part.a[name].double().T @ part.b[name].double().T)
        return output

    return hook


def exported_logits(directory: Path) -> Tensor:
    """PEFT changes a model in place, so it gets one of its own."""
    model = tiny_base(dtype=torch.float64).model
    return logits(PeftModel.from_pretrained(model, str(directory), autocast_adapter_dtype=False))


def logits(model: PreTrainedModel | PeftModel) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=IDS).logits
    return found


def by_layer(composition: Composition, side: str) -> dict[str, float]:
    return dict(zip(composition.layers, getattr(composition, side).tolist(), strict=True))


def test_module_extractor_and_weights_are_one_lora(tmp_path: Path) -> None:
    km, ke = tiny_artefact(BASE, 1, rank=3), tiny_artefact(BASE, 2, rank=5, extractor=True)
    assert ke.composition is not None
    export_folded(km, ke, ke.composition, tmp_path / "export", "base", dtype=torch.float64)
    expected = weighted_logits([(km, by_layer(ke.composition, "w_km")), (ke, by_layer(ke.composition, "w_ke"))])
    found = exported_logits(tmp_path / "export")
    assert (found - expected).abs().max() <= 1e-10 * expected.abs().max()
    assert (expected - logits(BASE.model)).abs().max() > 0.1
    assert (expected - weighted_logits([(km, {}), (ke, {})])).abs().max() > 0.01


def test_a_module_alone_has_weight_one(tmp_path: Path) -> None:
    km = tiny_artefact(BASE, 1, rank=3)
    halves = ones(km.manifest.targets)
    halved = replace(halves, w_km=halves.w_km / 2)
    for name, composition in {"none": None, "ignored": halved}.items():
        export_folded(km, None, composition, tmp_path / name, "base", dtype=torch.float64)
        expected = weighted_logits([(km, {})])
        assert (exported_logits(tmp_path / name) - expected).abs().max() <= 1e-10 * expected.abs().max()


@pytest.mark.parametrize(("of_km", "of_ke"), [(3, None), (None, 3), (5, 2)])
def test_layers_that_one_of_them_does_not_adapt(tmp_path: Path, of_km: int | None, of_ke: int | None) -> None:
    km, ke = tiny_artefact(BASE, 1, targets=of_km), tiny_artefact(BASE, 2, extractor=True, targets=of_ke)
    assert ke.composition is not None
    export_folded(km, ke, ke.composition, tmp_path / "export", "base", dtype=torch.float64)
    expected = weighted_logits([(km, by_layer(ke.composition, "w_km")), (ke, by_layer(ke.composition, "w_ke"))])
    assert (exported_logits(tmp_path / "export") - expected).abs().max() <= 1e-10 * expected.abs().max()


def test_float32_is_the_default_and_as_exact_as_float32(tmp_path: Path) -> None:
    km, ke = tiny_artefact(BASE, 1), tiny_artefact(BASE, 2, extractor=True)
    export_folded(km, ke, ke.composition, tmp_path / "export", "base")
    assert ke.composition is not None
    expected = weighted_logits([(km, by_layer(ke.composition, "w_km")), (ke, by_layer(ke.composition, "w_ke"))])
    assert (exported_logits(tmp_path / "export") - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_the_config_is_plain(tmp_path: Path) -> None:
    km, ke = tiny_artefact(BASE, 1, rank=3, targets=2), tiny_artefact(BASE, 2, rank=5, extractor=True)
    export_folded(km, ke, ke.composition, tmp_path / "export", "base")
    config = json.loads((tmp_path / "export" / "adapter_config.json").read_bytes())
    assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (8, 8, False)
    assert config["target_modules"] == list(adapted_layers(BASE.model))
    assert config["rank_pattern"] == config["alpha_pattern"] == {}
    assert {path.name for path in (tmp_path / "export").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}


@pytest.mark.parametrize("scopes", [(Scope.ANSWER, Scope.ALL), (Scope.ALL, Scope.ANSWER), (Scope.ANSWER, None)])
def test_scope_answer_is_no_plain_lora(tmp_path: Path, scopes: tuple[Scope, Scope | None]) -> None:
    km = tiny_artefact(BASE, 1, scope=scopes[0])
    ke = None if scopes[1] is None else tiny_artefact(BASE, 2, scope=scopes[1], extractor=True)
    with pytest.raises(ScopeNotExportable):
        export_folded(km, ke, ke.composition if ke else None, tmp_path / "export", "base")
    assert not (tmp_path / "export").exists()


def test_artefacts_of_two_base_models_are_refused(tmp_path: Path) -> None:
    km, ke = tiny_artefact(BASE, 1), tiny_artefact(BASE, 2, extractor=True)
    foreign = replace(km, manifest=replace(km.manifest, base_fingerprint="another"))
    with pytest.raises(ModuleWrongBase):
        export_folded(foreign, ke, ke.composition, tmp_path / "export", "base")
