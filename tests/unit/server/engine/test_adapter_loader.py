from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from server.engine.adapter_loader import loader
from server.engine.base_model import adapted_layers
from server.engine.request import ArtefactRef, Scope
from server.errors import ModuleCorrupt, ModuleUnreadable, ModuleUnsupported, ModuleWrongBase
from server.modules.artefact import Artefact, write_artefact
from tests.support.tiny_models import tiny_artefact, tiny_base

BASE = tiny_base(dtype=torch.float64)
LAYERS = adapted_layers(BASE.model)


def written(directory: Path, artefact: Artefact) -> ArtefactRef:
    return write_artefact(
        directory, a=artefact.a, b=artefact.b, manifest=artefact.manifest, base_model_name="tiny", composition=artefact.composition
    )


def test_files_become_tensors_as_the_slots_want_them(tmp_path: Path) -> None:
    artefact = tiny_artefact(BASE, 1, rank=3, scope=Scope.ANSWER, extractor=True)
    adapter = loader(BASE, LAYERS, 8)(written(tmp_path / "module", artefact))
    assert adapter.scope is Scope.ANSWER
    assert adapter.scaling == 1.5
    assert artefact.composition is not None
    assert adapter.w_km is not None
    for number, name in enumerate(LAYERS):
        pair = adapter.tensors[number]
        assert pair is not None
        assert torch.equal(pair[0], artefact.a[name].double())
        assert torch.equal(pair[1], artefact.b[name].T.double())
        assert adapter.w_km[number] == artefact.composition.weights(name)[0]
    assert adapter.nbytes == 2 * artefact.nbytes


def test_layers_without_an_adapter_have_none(tmp_path: Path) -> None:
    artefact = tiny_artefact(BASE, 1, targets=3)
    adapter = loader(BASE, LAYERS, 8)(written(tmp_path / "module", artefact))
    assert [pair is not None for pair in adapter.tensors] == [name in artefact.a for name in LAYERS]
    assert adapter.nbytes == sum(a.nbytes + b.nbytes for a, b in filter(None, adapter.tensors)) == 2 * artefact.nbytes


def test_what_is_held_does_not_keep_the_files_bytes_alive(tmp_path: Path) -> None:
    """In the base's own dtype too, where a copy might be saved."""
    artefact = tiny_artefact(BASE, 1)
    same = replace(BASE, dtype=torch.float32)
    adapter = loader(same, LAYERS, 8)(written(tmp_path / "module", artefact))
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for pair in adapter.tensors if pair for tensor in pair
    }
    assert list(storages.values()) == [adapter.nbytes]


def test_a_damaged_file_is_corrupt(tmp_path: Path) -> None:
    ref = written(tmp_path / "module", tiny_artefact(BASE, 1))
    path = ref.directory / "adapter_model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ModuleCorrupt):
        loader(BASE, LAYERS, 8)(ref)


def test_a_module_of_another_base_is_refused(tmp_path: Path) -> None:
    artefact = tiny_artefact(BASE, 1)
    foreign = replace(artefact, manifest=replace(artefact.manifest, base_fingerprint="1" * 64))
    with pytest.raises(ModuleWrongBase):
        loader(BASE, LAYERS, 8)(written(tmp_path / "module", foreign))


@pytest.mark.parametrize("locked", [True, False])
def test_what_crosses_to_a_gpu_is_page_locked_and_contiguous(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locked: bool) -> None:
    """All of a module at once; where the system locks no pages, as without a GPU, in memory as it is."""
    pinned: list[int] = []
    empty = torch.empty

    def take(elements: int, *, pin_memory: bool = False, **named: Any) -> torch.Tensor:
        if pin_memory and not locked:
            raise RuntimeError("cannot lock pages")
        pinned.extend([elements] * pin_memory)
        return empty(elements, **named)

    monkeypatch.setattr(torch, "empty", take)
    artefact = tiny_artefact(BASE, 1)
    on_gpu = replace(BASE, device=torch.device("cuda"))
    adapter = loader(on_gpu, LAYERS, 8)(written(tmp_path / "module", artefact))
    assert pinned == ([artefact.nbytes // 4] if locked else [])
    for pair, name in zip(adapter.tensors, LAYERS, strict=True):
        assert pair is not None
        assert all(tensor.is_contiguous() for tensor in pair)
        assert torch.equal(pair[0], artefact.a[name].double())


def test_a_disk_that_fails_is_no_damage(tmp_path: Path) -> None:
    def fail(*_: object) -> Artefact:
        raise PermissionError(13, "Permission denied", str(tmp_path))

    ref = written(tmp_path / "module", tiny_artefact(BASE, 1))
    with pytest.raises(ModuleUnreadable) as caught:
        loader(BASE, LAYERS, 8, fail)(ref)
    assert (caught.value.reason, caught.value.extra) == ("Permission denied", {"digest": ref.digest})
    assert str(tmp_path) not in caught.value.detail


def test_numbers_beyond_the_models_dtype_are_refused_before_a_slot_has_them(tmp_path: Path) -> None:
    """They would be infinite there, and reach the requests beside it."""
    narrow = tiny_base(dtype=torch.float16)
    artefact = tiny_artefact(narrow, 1)
    first = next(iter(artefact.b))
    artefact.b[first][0, 0] = 1e6
    ref = written(tmp_path / "module", artefact)
    assert loader(BASE, LAYERS, 8)(ref)
    with pytest.raises(ModuleUnsupported, match=r"too large for torch\.float16"):
        loader(narrow, adapted_layers(narrow.model), 8)(ref)
