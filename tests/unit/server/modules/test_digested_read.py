"""A digest computed while a file is read is the one of its tensors in memory, however the portions fall and the tensors lie."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from server.modules import digested_read
from server.modules.artefact import ADAPTER, write_artefact
from server.modules.digest import LoraDigest
from server.modules.digested_read import DigestedRead
from server.modules.files import read_regular
from server.modules.layout import UNREADABLE, layout_of
from server.modules.manifest import Manifest
from tests.support.tiny_models import tiny_artefact, tiny_base

BASE = tiny_base()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytearray, Manifest, str]:
    artefact = tiny_artefact(BASE, 1)
    directory = tmp_path_factory.mktemp("module") / "module"
    ref = write_artefact(directory, a=artefact.a, b=artefact.b, manifest=artefact.manifest, base_model_name="tiny")
    return read_regular(ref.directory / ADAPTER, 1 << 24), artefact.manifest, ref.digest


@pytest.mark.parametrize("portion", [1, 7, 1000, 1 << 20])
def test_it_is_the_same_in_any_portions(file: tuple[bytearray, Manifest, str], portion: int) -> None:
    data, manifest, digest = file
    assert _digest(data, manifest, portion) == digest


def test_it_is_the_same_where_tensors_lie_in_another_order(file: tuple[bytearray, Manifest, str]) -> None:
    data, manifest, digest = file
    assert _digest(_backwards(data), manifest, 500) == digest


def test_one_changed_byte_gives_another(file: tuple[bytearray, Manifest, str]) -> None:
    data, manifest, digest = file
    changed = bytearray(data)
    changed[-1] ^= 1
    assert _digest(changed, manifest, 500) != digest


@pytest.mark.parametrize("data", [b"short", b"\xff" * 64, (8).to_bytes(8, "little") + b"no json."])
def test_what_is_no_such_file_is_left_to_the_checks(file: tuple[bytearray, Manifest, str], data: bytes) -> None:
    read, whole = DigestedRead(file[1]), memoryview(bytearray(data))
    for end in range(len(data)):
        read.see(whole, end)
    with pytest.raises(UNREADABLE):
        layout_of(whole)


def test_a_header_that_could_not_be_read_then_is_read_at_the_end(
    file: tuple[bytearray, Manifest, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, manifest, digest = file
    read = DigestedRead(manifest)
    with monkeypatch.context() as patched:
        patched.setattr(digested_read, "layout_of", lambda _: (_ for _ in ()).throw(RuntimeError("no memory")))
        read.see(memoryview(data), len(data))
    assert read.hexdigest(memoryview(data), layout_of(data)) == digest


def test_unexpected_names_are_not_hashed_before_they_are_refused(
    file: tuple[bytearray, Manifest, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, manifest, _ = file
    read = DigestedRead(replace(manifest, targets=manifest.targets[:-1]))
    monkeypatch.setattr(LoraDigest, "add", lambda *_: pytest.fail("hashed"))
    read.see(memoryview(data), len(data))


def test_it_vouches_for_no_other_file(file: tuple[bytearray, Manifest, str]) -> None:
    data, manifest, _ = file
    read, other = DigestedRead(manifest), bytearray(data)
    read.see(memoryview(data), len(data))
    with pytest.raises(ValueError, match="not the one that was read"):
        read.hexdigest(memoryview(other), layout_of(other))


def test_a_file_is_told_of_while_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(range(256)) * (9 << 10))
    seen: list[tuple[int, int, int]] = []
    data = read_regular(tmp_path / "file", 1 << 24, lambda whole, end: seen.append((len(whole), end, whole[end - 1])))
    assert [end for _, end, _ in seen] == [1 << 20, 2 << 20, len(data)]
    assert {size for size, _, _ in seen} == {len(data)}
    assert {last for _, _, last in seen} == {255}


@pytest.mark.parametrize("size", [1 << 20, 3 << 20])
def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path, size: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(2 << 20))
    with pytest.raises(ValueError, match="changed"):
        read_regular(path, 1 << 24, lambda *_: os.truncate(path, size))


def _digest(data: bytearray, manifest: Manifest, portion: int) -> str:
    read, whole = DigestedRead(manifest), memoryview(data)
    for end in range(portion, len(data), portion):
        read.see(whole, end)
    return read.hexdigest(whole, layout_of(data))


def _backwards(data: bytearray) -> bytearray:
    """The same tensors, the last one first."""
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    content, end = bytearray(), 0
    for name, entry in sorted(entries.items(), reverse=True):
        first, last = entry["data_offsets"]
        content += data[start + first : start + last]
        entries[name] = entry | {"data_offsets": [end, end + last - first]}
        end += last - first
    head = json.dumps(entries).encode()
    head += b" " * (-len(head) % 8)
    return bytearray(len(head).to_bytes(8, "little") + head + content)
