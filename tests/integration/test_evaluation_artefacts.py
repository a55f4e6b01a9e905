from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from server.engine.base_model import BaseModel, adapted_layers
from server.engine.request import ArtefactRef
from server.errors import InvalidInput, ModuleWrongBase
from server.modules.artefact import read_artefact
from tests.support.artefacts import read, write_extractor, write_module
from tests.support.tiny_models import FINGERPRINT, tiny_base
from tests.support.tiny_training import TWO_STEPS
from worker.evaluation.artefacts import ArtefactUnavailable, TrainedArtefacts, extractor_of, module_of
from worker.evaluation.documents import Document

TEXT = "\n\n".join(f"The gate {i} is painted in colour {i}." for i in range(6))
GATES = Document(name="gates", text=TEXT, questions=())


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return tiny_base()


def retriever(document: Document) -> Any:
    def retrieve(question: str, k: int) -> Sequence[str]:
        return [document.text[:40]]

    return retrieve


class Made:
    """Artefacts of a cache, and what was heard while they were made."""

    def __init__(
        self,
        base: BaseModel,
        cache: Path,
        *,
        seed: int = 0,
        worn: ArtefactRef | None = None,
        extractor: ArtefactRef | None = None,
        passages: str = "",
        **recipe: Any,
    ) -> None:
        self.heard: list[str] = []
        self.artefacts = TrainedArtefacts(
            base,
            cache,
            preset="quick",
            overrides={**TWO_STEPS, **recipe},
            seed=seed,
            retriever=retriever,
            passages=passages,
            on_progress=lambda doing, done, total: self.heard.append(doing),
            extractor=extractor,
            worn_extractor=worn,
        )

    def module(self, document: Document = GATES) -> ArtefactRef:
        return self.artefacts.module(document, "mixed", None)


def test_a_module_is_trained_once_and_is_one_that_serving_accepts(base: BaseModel, tmp_path: Path) -> None:
    first = Made(base, tmp_path)
    ref = first.module()
    assert "mixed of gates: fitting" in first.heard
    shapes = {name: (layer.out_features, layer.in_features) for name, layer in adapted_layers(base.model).items()}
    assert read_artefact(ref, FINGERPRINT, shapes, 4).manifest.objective == "mixed"
    again = Made(base, tmp_path)
    assert again.module() == ref
    assert again.heard == []


def test_what_only_the_training_needed_is_gone(base: BaseModel, tmp_path: Path) -> None:
    folder = Made(base, tmp_path).module().directory.parents[1]
    assert sorted(path.name for path in folder.iterdir()) == [
        "attempt-1",
        "examples.sha256",
        "inputs.json",
        "lock",
        "ref.json",
        "synthesis.jsonl",
    ]


def test_other_documents_recipes_and_seeds_are_other_modules_over_the_same_generations(base: BaseModel, tmp_path: Path) -> None:
    Made(base, tmp_path).module()
    Made(base, tmp_path, seed=1).module()
    Made(base, tmp_path, max_steps=3).module()
    assert len(list((tmp_path / "modules").iterdir())) == 3
    assert len(list((tmp_path / "synthesis").iterdir())) == 1
    Made(base, tmp_path).module(Document(name="gates", text=f"{TEXT} And no more.", questions=()))
    assert len(list((tmp_path / "modules").iterdir())) == 4
    assert len(list((tmp_path / "synthesis").iterdir())) == 2


def test_a_training_that_was_killed_is_gone_on_with(base: BaseModel, tmp_path: Path) -> None:
    stopped = Made(base, tmp_path)

    def kill(doing: str, done: int, total: int) -> None:
        if doing.endswith("gating"):
            raise KeyboardInterrupt

    stopped.artefacts._on_progress = kill
    with pytest.raises(KeyboardInterrupt):
        stopped.module()
    (folder,) = (tmp_path / "modules").iterdir()
    assert not (folder / "ref.json").exists()
    generated = next((tmp_path / "synthesis").iterdir()).read_text()
    expected = Made(base, tmp_path / "other").module()
    assert Made(base, tmp_path).module().digest == expected.digest
    assert next((tmp_path / "synthesis").iterdir()).read_text().strip() == generated.strip()


def test_the_base_is_left_as_it_was(base: BaseModel, tmp_path: Path) -> None:
    before = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    Made(base, tmp_path).module()
    after = base.model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_an_unknown_objective_or_field_is_explained(base: BaseModel, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput):
        Made(base, tmp_path).artefacts.module(GATES, "osmosis", None)
    with pytest.raises(InvalidInput, match="speed"):
        Made(base, tmp_path, speed=3).module()


def test_rows_with_an_extractor_need_one(base: BaseModel, tmp_path: Path) -> None:
    with pytest.raises(ArtefactUnavailable, match="name its directory with --extractor"):
        Made(base, tmp_path).artefacts.extractor()
    ref = write_extractor(tmp_path / "ke")
    assert Made(base, tmp_path, extractor=ref).artefacts.extractor() == ref


def test_modules_may_wear_another_extractor_than_their_answers_do(base: BaseModel, tmp_path: Path) -> None:
    ref, other = write_extractor(tmp_path / "ke"), write_extractor(tmp_path / "other")
    assert Made(base, tmp_path, extractor=ref).artefacts.worn_extractor() == ref
    assert Made(base, tmp_path, extractor=ref, worn=other).artefacts.worn_extractor() == other
    with pytest.raises(ArtefactUnavailable):
        Made(base, tmp_path).artefacts.worn_extractor()


def test_an_extractor_may_be_worn_with_every_weight_1(base: BaseModel, tmp_path: Path) -> None:
    ref = write_extractor(tmp_path / "ke")
    made = Made(base, tmp_path, extractor=ref)
    for _ in range(2):
        plain = made.artefacts.extractor(ones=True)
    assert (plain.digest, plain.manifest_sha256) == (ref.digest, ref.manifest_sha256)
    assert plain.composition != ref.composition
    composition = read(plain).composition
    assert composition is not None
    assert {composition.weights(layer) for layer in composition.layers} == {(1.0, 1.0)}


def test_an_extractor_of_another_base_is_not_worn(base: BaseModel, tmp_path: Path) -> None:
    ref = write_extractor(tmp_path / "ke")
    with pytest.raises(ModuleWrongBase):
        Made(base, tmp_path, extractor=ref).artefacts.module(GATES, "mixed", ref)


def test_an_extractors_directory_is_enough_to_know_it(tmp_path: Path) -> None:
    written = write_extractor(tmp_path / "ke")
    ref = extractor_of(tmp_path / "ke")
    assert ref == written
    assert read(ref).composition is not None


def test_so_is_a_modules(tmp_path: Path) -> None:
    written = write_module(tmp_path / "km")
    assert module_of(tmp_path / "km") == written
    write_extractor(tmp_path / "ke")
    with pytest.raises(ArtefactUnavailable, match="it is a knowledge extractor"):
        module_of(tmp_path / "ke")


def test_what_is_no_extractor_is_explained(tmp_path: Path) -> None:
    write_module(tmp_path / "km")
    with pytest.raises(ArtefactUnavailable, match="it is a knowledge module"):
        extractor_of(tmp_path / "km")
    with pytest.raises(ArtefactUnavailable, match="holds no knowledge extractor"):
        extractor_of(tmp_path / "absent")
    write_extractor(tmp_path / "ke")
    (tmp_path / "ke" / "composition.safetensors").write_bytes(b"torn")
    with pytest.raises(ArtefactUnavailable, match="holds no knowledge extractor"):
        extractor_of(tmp_path / "ke")


def test_a_reference_names_its_module_relative_to_itself(base: BaseModel, tmp_path: Path) -> None:
    """So that a cache may be moved."""
    ref = Made(base, tmp_path / "one").module()
    values = json.loads((ref.directory.parents[1] / "ref.json").read_text())
    assert values["directory"] == "attempt-1/artefact"
    (tmp_path / "one").rename(tmp_path / "two")
    moved = Made(base, tmp_path / "two").module()
    assert moved.digest == ref.digest
    assert (moved.directory / "manifest.json").exists()


def test_modules_that_learn_beside_passages_are_kept_by_what_those_are(base: BaseModel, tmp_path: Path) -> None:
    Made(base, tmp_path, passages="64 tokens", with_passages=0.5).artefacts.module(GATES, "mixed", None)
    others = Made(base, tmp_path, passages="256 tokens", with_passages=0.5).artefacts
    assert not others.has(GATES, "mixed", None)
    Made(base, tmp_path, passages="64 tokens").artefacts.module(GATES, "mixed", None)
    assert Made(base, tmp_path, passages="256 tokens").artefacts.has(GATES, "mixed", None), "these have seen none"


def test_a_document_that_gives_too_little_is_named(base: BaseModel, tmp_path: Path) -> None:
    short = Document(name="short", text="One short line here.", questions=())
    with pytest.raises(ArtefactUnavailable, match="there can be no module, mixed of short: The document gave 0 usable training texts"):
        Made(base, tmp_path).artefacts.module(short, "mixed", None)
