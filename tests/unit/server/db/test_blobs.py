from __future__ import annotations

import stat
from pathlib import Path

import pytest

from server.db.blobs import BlobStore

KEY = "acme/doc_1/rev_1"


def test_a_temporary_becomes_a_blob(tmp_path: Path) -> None:
    store = BlobStore(tmp_path / "blobs")
    temporary = store.temporary()
    temporary.write_bytes(b"%PDF")
    store.adopt(temporary, KEY)
    assert store.read_bytes(KEY) == b"%PDF"
    assert not temporary.exists()
    assert stat.S_IMODE(store.path(KEY).parent.stat().st_mode) == 0o700


def test_text_keeps_every_character(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    text = "line\r\nline\rü\u2028end\n"
    store.write_text(f"{KEY}.txt", text)
    assert store.read_text(f"{KEY}.txt") == text


def test_a_failed_write_leaves_no_temporary(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    with pytest.raises(UnicodeEncodeError):
        store.write_text(KEY, "\ud800")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_delete_and_delete_prefix(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    for key in (KEY, f"{KEY}.txt", "acme/doc_2/rev_9"):
        store.write_text(key, "x")
    store.delete(KEY)
    store.delete(KEY)
    store.delete_prefix("acme/doc_1")
    store.delete_prefix("acme/doc_1")
    with pytest.raises(FileNotFoundError):
        store.read_text(f"{KEY}.txt")
    assert store.read_text("acme/doc_2/rev_9") == "x"


@pytest.mark.parametrize(
    "key", ["", "/etc/passwd", "../x", "a/../../b", "a//b", "a/b/c/d", ".hidden/x/y", "a/b/c\x00", "a/b/c\n", "a\\b/.."]
)
def test_keys_that_could_leave_the_store_are_refused(tmp_path: Path, key: str) -> None:
    store = BlobStore(tmp_path)
    for use in (store.read_bytes, store.delete, store.delete_prefix, store.path):
        with pytest.raises(ValueError, match="blob key"):
            use(key)
    with pytest.raises(ValueError, match="blob key"):
        store.write_text(key, "x")
