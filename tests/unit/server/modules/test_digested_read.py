"""A digest computed while a file is read is the one of its tensors in memory, however the portions fall and the tensors lie."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from server.modules.artefact import ADAPTER, write_artefact
from server.modules.digested_read import DigestedRead
from server.modules.files import read_regular
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


@pytest.mark.parametrize("data", [b"", b"short", b"\xff" * 64, (8).to_bytes(8, "little") + b"no json."])
def test_what_is_no_such_file_is_left_to_the_checks(file: tuple[bytearray, Manifest, str], data: bytes) -> None:
    assert _digest(bytearray(data), file[1], 4) != file[2]


def test_a_file_is_told_of_while_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(range(256)) * (9 << 10))
    seen: list[tuple[int, int, int]] = []
    data = read_regular(tmp_path / "file", 1 << 24, lambda whole, end: seen.append((len(whole), end, whole[end - 1])))
    assert [end for _, end, _ in seen] == [1 << 20, 2 << 20, len(data)]
    assert {size for size, _, _ in seen} == {len(data)}
    assert {last for _, _, last in seen} == {255}


def _digest(data: bytearray, manifest: Manifest, portion: int) -> str:
    read, whole = DigestedRead(manifest), memoryview(data)
    for end in range(portion, len(data), portion):
        read.see(whole, end)
    return read.hexdigest(whole)


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
