"""Ways to damage a published artefact, each refused before a tensor is used. Forgers who also write the row: `test_artefact_forgeries`."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.engine.request import ArtefactRef, Scope
from server.errors import ModuleCorrupt, ModuleMissing, ModuleUnsupported, ModuleWrongBase
from server.modules.digest import composition_digest, lora_digest
from server.modules.peft_format import tensor_names
from tests.support.artefacts import (
    FILES,
    FINGERPRINT,
    OTHER,
    SHAPES,
    extractor_manifest,
    read,
    refused,
    write_extractor,
    write_module,
)

LAYER = next(iter(SHAPES))
A, B = tensor_names(LAYER)


def _edit(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        path.write_bytes(change(path.read_bytes()))

    return edit


def _flip(share: float) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        at = int(share * (len(data) - 1))
        return data[:at] + bytes([data[at] ^ 0x11]) + data[at + 1 :]

    return change


def _directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _link(path: Path) -> None:
    elsewhere = path.with_name("elsewhere")
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


def _dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("/nonexistent")


DAMAGES: dict[str, Callable[[Path], None]] = {
    "missing": Path.unlink,
    "empty": _edit(lambda data: b""),
    "first half": _edit(lambda data: data[: len(data) // 2]),
    "last byte lost": _edit(lambda data: data[:-1]),
    "first byte lost": _edit(lambda data: data[1:]),
    "byte appended": _edit(lambda data: data + b"\0"),
    "twice": _edit(lambda data: data * 2),
    "first byte flipped": _edit(_flip(0.0)),
    "early byte flipped": _edit(_flip(0.01)),
    "middle byte flipped": _edit(_flip(0.5)),
    "late byte flipped": _edit(_flip(0.9)),
    "last byte flipped": _edit(_flip(1.0)),
    "zeros": _edit(lambda data: bytes(len(data))),
    "garbage": _edit(lambda data: b"\xff\x00PK\x03\x04" * 9),
    "pickle": _edit(lambda data: b"\x80\x04\x95\x0c\x00\x00\x00\x00\x00\x00\x00}\x94\x8c\x01a\x94K\x01s."),
    "header length beyond the file": _edit(lambda data: (1 << 40).to_bytes(8, "little") + data[8:]),
    "far too long": _edit(lambda data: data + bytes(8 * 1024 * 1024)),
    "directory": _directory,
    "pipe": _pipe,
    "link to the very bytes": _link,
    "dangling link": _dangling,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("file", FILES)
def test_a_damaged_file_is_refused(tmp_path: Path, file: str, damage: Callable[[Path], None]) -> None:
    ref = write_extractor(tmp_path / "extractor")
    damage(ref.directory / file)
    refused(ref, "")


@pytest.mark.parametrize("file", FILES)
def test_a_file_of_another_artefact_is_refused(tmp_path: Path, file: str) -> None:
    """Valid in itself, so that only digests and hashes can tell."""
    ref = write_extractor(tmp_path / "extractor")
    other = write_extractor(tmp_path / "other", seed=1, rank=4, alpha=16.0)
    (ref.directory / file).write_bytes((other.directory / file).read_bytes())
    refused(ref, "")


def test_a_link_in_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    ref = write_module(tmp_path / "module")
    (tmp_path / "link").symlink_to(ref.directory)
    refused(replace(ref, directory=tmp_path / "link"), "symbolic link")


def test_a_file_in_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    ref = write_module(tmp_path / "module")
    (tmp_path / "file").write_bytes(b"")
    refused(replace(ref, directory=tmp_path / "file"), "missing")


@pytest.fixture(scope="module")
def extractor(tmp_path_factory: pytest.TempPathFactory) -> ArtefactRef:
    return write_extractor(tmp_path_factory.mktemp("flips") / "extractor")


@settings(max_examples=200, deadline=None)
@given(file=st.sampled_from(FILES), place=st.floats(0, 1), value=st.integers(0, 255))
def test_no_byte_can_change_what_is_served(extractor: ArtefactRef, file: str, place: float, value: int) -> None:
    """A change is refused, or, as one of white space in a header, changes nothing that is used."""
    path = extractor.directory / file
    intact = path.read_bytes()
    at = int(place * (len(intact) - 1))
    path.write_bytes(intact[:at] + bytes([value]) + intact[at + 1 :])
    try:
        _still_proven(extractor)
    finally:
        path.write_bytes(intact)


def _still_proven(ref: ArtefactRef) -> None:
    try:
        found = read(ref)
    except ModuleCorrupt:
        return
    assert found.composition is not None
    assert lora_digest(found.a, found.b, found.manifest) == ref.digest
    assert composition_digest(found.composition, ref.digest) == ref.composition
    assert found.manifest == extractor_manifest()


# What the row, the base model and the settings say against intact files.


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"digest": OTHER}, "digest of the tensors"),
        ({"digest": ""}, "digest of the tensors"),
        ({"manifest_sha256": OTHER}, "manifest's hash"),
        ({"manifest_sha256": ""}, "manifest's hash"),
        ({"scope": Scope.ANSWER}, "scope is all, not answer"),
        ({"composition": OTHER}, "kind is knowledge_module"),
    ],
    ids=str,
)
def test_a_row_that_expects_something_else(tmp_path: Path, row: dict[str, Any], reason: str) -> None:
    refused(replace(write_module(tmp_path / "module"), **row), reason)


@pytest.mark.parametrize(
    ("row", "reason"),
    [({"composition": None}, "kind is knowledge_extractor"), ({"composition": OTHER}, "digest of the composition")],
    ids=str,
)
def test_a_row_that_expects_another_extractor(tmp_path: Path, row: dict[str, Any], reason: str) -> None:
    refused(replace(write_extractor(tmp_path / "extractor"), **row), reason)


def test_an_artefact_of_another_base_model_is_intact_but_refused(tmp_path: Path) -> None:
    ref = write_module(tmp_path / "module", base_fingerprint=OTHER)
    with pytest.raises(ModuleWrongBase, match="another base model") as caught:
        read(ref)
    assert FINGERPRINT in caught.value.reason


def _without(layer: str) -> dict[str, tuple[int, int]]:
    return {name: shape for name, shape in SHAPES.items() if name != layer}


@pytest.mark.parametrize(
    ("engine", "reason"),
    [
        ({"max_rank": 3}, "rank 4 is above the limit of 3"),
        ({"shapes": _without(LAYER)}, f"no layer {LAYER}"),
        ({"shapes": {}}, "no layer"),
    ],
    ids=str,
)
def test_an_engine_that_could_not_hold_it_says_nothing_of_damage(tmp_path: Path, engine: dict[str, Any], reason: str) -> None:
    ref = write_module(tmp_path / "module")
    with pytest.raises(ModuleUnsupported, match=reason) as caught:
        read(ref, **engine)
    assert caught.value.extra == {"digest": ref.digest}


def test_a_newer_schema_says_nothing_of_damage(tmp_path: Path) -> None:
    with pytest.raises(ModuleUnsupported, match="its schema version is 2 and this release reads 1"):
        read(write_module(tmp_path / "module", schema_version=2))


def test_a_directory_that_is_not_there_says_nothing_of_damage(tmp_path: Path) -> None:
    ref = write_module(tmp_path / "store" / "module")
    (tmp_path / "store").rename(tmp_path / "elsewhere")
    with pytest.raises(ModuleMissing) as caught:
        read(ref)
    assert str(ref.directory) not in caught.value.detail


@pytest.mark.parametrize(
    ("engine", "reason"),
    [
        ({"shapes": SHAPES | {LAYER: (6, 11)}}, "shape [4, 10], not [4, 11]"),
        ({"shapes": SHAPES | {LAYER: (7, 10)}}, "shape [6, 4], not [7, 4]"),
        ({"shapes": SHAPES | {LAYER: (10, 6)}}, "shape"),
    ],
    ids=str,
)
def test_an_engine_that_could_not_hold_it(tmp_path: Path, engine: dict[str, Any], reason: str) -> None:
    refused(write_module(tmp_path / "module"), reason, **engine)
