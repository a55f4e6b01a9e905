from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from server.engine import prompt
from server.engine.fingerprint_cache import remembered_fingerprint


class Hashing:
    """In place of hashing every weight: the directory's content as text, and how often it was asked."""

    def __init__(self, meanwhile: Callable[[Path], None] | None = None) -> None:
        self.runs = 0
        self._meanwhile = meanwhile

    def __call__(self, directory: Path, on_bytes: Callable[[int, int], None]) -> str:
        self.runs += 1
        on_bytes(1, 2)
        found = "+".join(sorted(path.read_text() for path in directory.iterdir()))
        if self._meanwhile is not None:
            self._meanwhile(directory)
        return found


@pytest.fixture
def base(tmp_path: Path) -> Path:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "weights").write_text("one")
    return tmp_path / "base"


def remembered(base: Path, hashing: Hashing, models: str = "models") -> str:
    return remembered_fingerprint(base, base.parent / models, lambda *event: None, hashing)


def test_an_unchanged_directory_is_hashed_once(base: Path) -> None:
    hashing = Hashing()
    assert [remembered(base, hashing) for _ in range(3)] == ["one"] * 3
    assert hashing.runs == 1


def test_nothing_is_written_beside_a_users_own_files(base: Path) -> None:
    remembered(base, Hashing())
    assert [path.name for path in base.iterdir()] == ["weights"]


def _rewrite(base: Path) -> None:
    (base / "weights").write_text("two")


def _touch(base: Path) -> None:
    os.utime(base / "weights", ns=(1, 1))


def _add(base: Path) -> None:
    (base / "more").write_text("two")


def _replace_in_disguise(base: Path) -> None:
    status = (base / "weights").stat()
    (base / "new").write_text("two")
    (base / "new").replace(base / "weights")
    os.utime(base / "weights", ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("change", [_rewrite, _touch, _add, _replace_in_disguise])
def test_a_changed_directory_is_hashed_again(base: Path, change: Callable[[Path], None]) -> None:
    hashing = Hashing()
    remembered(base, hashing)
    change(base)
    remembered(base, hashing)
    assert hashing.runs == 2


def test_a_changed_prompt_is_hashed_again(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashing = Hashing()
    remembered(base, hashing)
    monkeypatch.setattr(prompt, "SYSTEM", "Be brief.")
    remembered(base, hashing)
    assert hashing.runs == 2


def test_files_that_change_while_they_are_hashed_are_not_remembered(base: Path) -> None:
    remembered(base, Hashing(meanwhile=_rewrite))
    assert remembered(base, Hashing()) == "two"


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"{}", b'{"state":1}'])
def test_a_damaged_note_is_written_again(base: Path, damage: bytes) -> None:
    hashing = Hashing()
    remembered(base, hashing)
    (note,) = (base.parent / "models" / ".fingerprints").iterdir()
    note.write_bytes(damage)
    assert [remembered(base, hashing), remembered(base, hashing)] == ["one", "one"]
    assert hashing.runs == 2


def test_a_models_directory_that_cannot_be_written_only_costs_time(base: Path) -> None:
    (base.parent / "file").write_text("")
    assert remembered(base, Hashing(), models="file/below") == "one"


def test_hashing_is_reported(base: Path) -> None:
    events: list[tuple[str, int, int]] = []
    remembered_fingerprint(base, base.parent / "models", lambda *event: events.append(event), Hashing())
    assert events == [("fingerprint", 1, 2)]
