from __future__ import annotations

from pathlib import Path

import pytest

from worker.evaluation.output import replaced, require_folder


def test_a_file_is_the_old_one_until_it_is_the_whole_new_one(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_text("old")
    with pytest.raises(TypeError), replaced(path) as part:
        part.write_text(None)  # type: ignore[arg-type]
    assert path.read_text() == "old"
    with replaced(path) as part:
        part.write_text("new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_made_and_one_that_cannot_be_is_said(tmp_path: Path) -> None:
    for _ in range(2):
        require_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").write_text("")
    for place in ("file", "file/below"):
        with pytest.raises(ValueError, match="cannot be made"):
            require_folder(tmp_path / place)


def test_a_folder_that_is_only_read_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests may run as root, for whom no folder is."""
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(ValueError, match="nothing can be written into"):
        require_folder(tmp_path)
