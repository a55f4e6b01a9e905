from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file

from server.engine.request import Scope
from server.modules.artefact import write_artefact
from server.modules.digest import composition_digest, lora_digest
from tests.support.artefacts import (
    BASE_NAME,
    RANK,
    SHAPES,
    composition,
    extractor_manifest,
    lora,
    manifest,
    read,
    write_extractor,
    write_module,
)


def test_a_module_is_read_as_it_was_written(tmp_path: Path) -> None:
    ref = write_module(tmp_path / "module")
    found = read(ref)
    a, b = lora()
    assert found.manifest == manifest()
    assert found.a.keys() == a.keys()
    assert all(torch.equal(found.a[layer], a[layer]) and torch.equal(found.b[layer], b[layer]) for layer in SHAPES)
    assert (found.composition, found.scaling) == (None, 2.0)
    assert found.nbytes == sum(tensor.nbytes for tensor in (*a.values(), *b.values()))


def test_an_extractor_brings_its_composition(tmp_path: Path) -> None:
    ref = write_extractor(tmp_path / "extractor", scope=Scope.ANSWER)
    found, expected = read(ref), composition()
    assert ref.scope is Scope.ANSWER
    assert ref.composition == composition_digest(expected, ref.digest)
    assert found.composition is not None
    assert found.composition.layers == expected.layers
    assert torch.equal(found.composition.w_km, expected.w_km)
    assert torch.equal(found.composition.w_ke, expected.w_ke)


def test_the_reference_is_what_a_row_must_record(tmp_path: Path) -> None:
    ref = write_module(tmp_path / "module")
    assert ref.digest == lora_digest(*lora(), manifest())
    assert ref.manifest_sha256 == hashlib.sha256((tmp_path / "module" / "manifest.json").read_bytes()).hexdigest()
    assert (ref.directory, ref.scope, ref.composition) == (tmp_path / "module", Scope.ALL, None)


def test_bfloat16_stays_bfloat16(tmp_path: Path) -> None:
    a, b = ({layer: tensor.bfloat16() for layer, tensor in part.items()} for part in lora())
    ref = write_artefact(tmp_path / "module", a=a, b=b, manifest=manifest(), base_model_name=BASE_NAME)
    assert {tensor.dtype for tensor in read(ref).a.values()} == {torch.bfloat16}


def test_tensors_may_need_gradients_share_memory_or_be_strided(tmp_path: Path) -> None:
    a, b = lora()
    pool = torch.stack([torch.stack([a[layer] for layer in list(SHAPES)[:1]])] * 2).requires_grad_()
    first = next(iter(SHAPES))
    ref = write_artefact(
        tmp_path / "module",
        a=a | {first: pool[0, 0]},
        b={layer: tensor.T.contiguous().T for layer, tensor in b.items()},
        manifest=manifest(),
        base_model_name=BASE_NAME,
    )
    assert ref.digest == write_module(tmp_path / "plain").digest
    assert not read(ref).a[first].requires_grad


def test_some_of_the_linear_layers_are_enough(tmp_path: Path) -> None:
    layers = dict(list(SHAPES.items())[:2])
    a, b = lora(layers)
    ref = write_artefact(tmp_path / "module", a=a, b=b, manifest=manifest(targets=tuple(layers)), base_model_name=BASE_NAME)
    assert tuple(read(ref).a) == tuple(layers)


def test_peft_reads_the_directory(tmp_path: Path) -> None:
    write_module(tmp_path / "module", alpha=6.0)
    config = LoraConfig.from_pretrained(str(tmp_path / "module"))
    assert (config.r, config.lora_alpha, config.use_rslora, config.bias) == (RANK, 6, False, "none")
    assert set(config.target_modules or ()) == set(SHAPES)
    assert not config.rank_pattern
    assert not config.alpha_pattern
    names = load_file(tmp_path / "module" / "adapter_model.safetensors").keys()
    assert names == {f"base_model.model.{layer}.lora_{side}.weight" for layer in SHAPES for side in "AB"}


def test_an_alpha_that_is_no_whole_number_keeps_its_fraction(tmp_path: Path) -> None:
    ref = write_module(tmp_path / "module", alpha=6.5)
    assert json.loads((tmp_path / "module" / "adapter_config.json").read_bytes())["lora_alpha"] == 6.5
    assert read(ref).scaling == 6.5 / RANK


def test_the_files_are_the_owners_and_nothing_else_is_written(tmp_path: Path) -> None:
    write_module(tmp_path / "module")
    write_extractor(tmp_path / "extractor")
    names = {"adapter_model.safetensors", "adapter_config.json", "manifest.json"}
    assert {path.name for path in (tmp_path / "module").iterdir()} == names
    assert {path.name for path in (tmp_path / "extractor").iterdir()} == names | {"composition.safetensors"}
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "module").iterdir()} == {0o600}
    assert (tmp_path / "module").stat().st_mode & 0o777 == 0o700


def test_an_artefact_is_never_overwritten(tmp_path: Path) -> None:
    write_module(tmp_path / "module")
    with pytest.raises(FileExistsError):
        write_module(tmp_path / "module", seed=1)


def test_the_base_models_name_is_no_part_of_the_proof(tmp_path: Path) -> None:
    a, b = lora()
    ref = write_artefact(tmp_path / "module", a=a, b=b, manifest=manifest(), base_model_name="/elsewhere")
    assert read(ref).manifest == manifest()


def test_new_weights_over_the_same_lora_are_another_composition(tmp_path: Path) -> None:
    a, b = lora()
    refs = [
        write_artefact(
            tmp_path / f"{seed}", a=a, b=b, manifest=extractor_manifest(), base_model_name=BASE_NAME, composition=composition(seed=seed)
        )
        for seed in (1, 2)
    ]
    assert refs[0].digest == refs[1].digest
    assert refs[0].composition != refs[1].composition
