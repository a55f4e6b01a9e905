from __future__ import annotations

from pathlib import Path

import pytest

from server.errors import EmptyDocument, EncryptedDocument, UnsupportedMediaType
from server.retrieval import sniff
from tests.support.documents import docx, ole, paragraph, pdf, zipped


def detect(tmp_path: Path, data: bytes, filename: str | None = None) -> str:
    path = tmp_path / "blob"
    path.write_bytes(data)
    return sniff.detect(path, filename)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(pdf(["Hello"]), sniff.PDF, id="pdf"),
        pytest.param(b"\r\n" + pdf(["Hello"]), sniff.PDF, id="pdf after junk"),
        pytest.param(docx(paragraph("Hello")), sniff.DOCX, id="docx"),
        pytest.param(b"<!DOCTYPE html><p>Hello", sniff.HTML, id="doctype"),
        pytest.param(b"<?xml version='1.0'?>\n<!-- c -->\n<html>", sniff.HTML, id="xhtml"),
        pytest.param(b"<div>Hello</div>", sniff.HTML, id="fragment"),
        pytest.param("<html><p>Grüße".encode("utf-16"), sniff.HTML, id="utf-16 html"),
        pytest.param(b"# Title\n\n- one\n- two\n", sniff.MARKDOWN, id="heading and list"),
        pytest.param(b"Title\n=====\n\nSee [this](http://x.y).\n", sniff.MARKDOWN, id="setext and link"),
        pytest.param(b"a | b\n--|--\n1 | 2\n\n**so**", sniff.MARKDOWN, id="table and bold"),
        pytest.param(b"Plain words, 3 > 2 and a * b * c.\n", sniff.TEXT, id="text"),
        pytest.param(b"if (a < b) { return x[0](y); }", sniff.TEXT, id="code"),
        pytest.param("Grüße, Öl und Bäume".encode("latin-1"), sniff.TEXT, id="latin-1"),
        pytest.param("Hello, this is wide text.".encode("utf-16-le"), sniff.TEXT, id="utf-16 without mark"),
        pytest.param(b"MZ is how this sentence starts.", sniff.TEXT, id="text that starts like a program"),
        pytest.param(b"\x1b[1mbold\x1b[0m terminal output", sniff.TEXT, id="escape sequences"),
    ],
)
def test_the_bytes_decide(tmp_path: Path, data: bytes, expected: str) -> None:
    assert detect(tmp_path, data, "misleading.exe") == expected


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\x89PNG\r\n\x1a\n" + bytes(50), id="png"),
        pytest.param(b"\xff\xd8\xff\xe0" + bytes(50), id="jpeg"),
        pytest.param(b"GIF89a" + bytes(50), id="gif"),
        pytest.param(b"MZ\x90\x00" + bytes(50), id="exe"),
        pytest.param(b"\x7fELF\x02\x01\x01" + bytes(50), id="elf"),
        pytest.param(b"\x1f\x8b\x08" + bytes(50), id="gzip"),
        pytest.param(b"{\\rtf1\\ansi Hello}", id="rtf"),
        pytest.param(b"<svg xmlns='http://www.w3.org/2000/svg'/>", id="svg"),
        pytest.param(zipped({"a.txt": "hello"}), id="zip"),
        pytest.param(zipped({"xl/workbook.xml": "<x/>"}), id="xlsx"),
        pytest.param(zipped({}), id="empty zip"),
        pytest.param(ole("WordDocument"), id="doc"),
        pytest.param(bytes(range(256)) * 40, id="unknown binary"),
    ],
)
def test_what_is_no_text_is_refused_whatever_its_name(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(UnsupportedMediaType):
        detect(tmp_path, data, "innocent.txt")


@pytest.mark.parametrize("data", [b"", b" \n\t\r\n"])
def test_nothing_is_empty(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(EmptyDocument):
        detect(tmp_path, data)


def test_a_locked_office_file_is_encrypted(tmp_path: Path) -> None:
    with pytest.raises(EncryptedDocument):
        detect(tmp_path, ole("EncryptedPackage"), "plan.docx")


@pytest.mark.parametrize(
    ("filename", "expected"),
    [("notes.md", sniff.MARKDOWN), ("notes.MARKDOWN", sniff.MARKDOWN), ("notes.txt", sniff.TEXT), (None, sniff.TEXT)],
)
def test_the_name_breaks_a_tie_only(tmp_path: Path, filename: str | None, expected: str) -> None:
    assert detect(tmp_path, b"# One heading\n\nand words", filename) == expected


def test_path_like_names_are_only_names(tmp_path: Path) -> None:
    assert detect(tmp_path, b"words", "../../etc/passwd\x00.md") == sniff.MARKDOWN
