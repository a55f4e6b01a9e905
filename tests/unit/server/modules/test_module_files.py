from __future__ import annotations

import os
from pathlib import Path

import pytest

from server.modules.files import flush_tree, make_durably, read_regular, write_durably


def test_a_file_is_written_once_and_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_durably(path, b"bytes")
    assert read_regular(path, 5) == b"bytes"
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(FileExistsError):
        write_durably(path, b"other")


def test_directories_are_made_for_their_owner_only(tmp_path: Path) -> None:
    make_durably(tmp_path / "a" / "b")
    make_durably(tmp_path / "a" / "b")
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o700
    flush_tree(tmp_path)


def test_what_is_no_plain_file_of_the_expected_size_is_refused(tmp_path: Path) -> None:
    (tmp_path / "long").write_bytes(b"123456")
    (tmp_path / "link").symlink_to(tmp_path / "long")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    reasons = {
        "long": "6 bytes, more than 5",
        "link": "symbolic link",
        "dangling": "symbolic link",
        "folder": "not a regular file",
        "pipe": "not a regular file",
        "absent": "missing",
        "long/below": "missing",
    }
    for name, reason in reasons.items():
        with pytest.raises(ValueError, match=reason):
            read_regular(tmp_path / name, 5)


def test_a_disk_that_fails_is_not_a_damaged_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"1")
    with pytest.raises(OSError, match="File name too long"):
        read_regular(tmp_path / ("x" * 300), 5)


@pytest.mark.parametrize("change", [b"123", b"1", b""])
def test_a_file_that_changes_its_length_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12")
    seen = os.fstat

    def look(descriptor: int) -> os.stat_result:
        status = seen(descriptor)
        path.write_bytes(change)
        return status

    monkeypatch.setattr(os, "fstat", look)
    with pytest.raises(ValueError, match="changed while it was read"):
        read_regular(path, 5)
