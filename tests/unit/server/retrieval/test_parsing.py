from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from server.errors import (
    BrokenDocument,
    DocumentTooLong,
    EmptyDocument,
    EncryptedDocument,
    KmserveError,
    NoTextLayer,
    ParseLimit,
    UndecodableText,
    UnsupportedMediaType,
)
from server.retrieval import parse_main
from server.retrieval.parsing import parse
from server.retrieval.types import Page, ParsedDocument
from tests.support.documents import docx, paragraph, pdf
from tests.support.unavailable import unavailable

GIB = 1024**3
CANARY = "Zitronenfalter"


async def parsed(
    tmp_path: Path, data: bytes, *, filename: str | None = None, seconds: float = 30, memory_bytes: int = 2 * GIB
) -> ParsedDocument:
    path = tmp_path / "blob"
    path.write_bytes(data)
    return await parse(path, filename=filename, seconds=seconds, memory_bytes=memory_bytes, max_characters=5000)


async def test_pages_come_back_whole(tmp_path: Path) -> None:
    document = await parsed(tmp_path, pdf(["Page one.", "Page (two)."]))
    assert document == ParsedDocument(
        media_type="application/pdf", pages=(Page(number=1, text="Page one."), Page(number=2, text="Page (two)."))
    )


async def test_any_text_survives_the_pipe(tmp_path: Path) -> None:
    text = 'Grüße, 日本語, 👩‍👩‍👧 and \\u0041 "quoted"\nsecond line'
    document = await parsed(tmp_path, text.encode(), filename="../odd \ud800 name.txt")
    assert document.text == text


@pytest.mark.parametrize(
    ("data", "error"),
    [
        pytest.param(b"", EmptyDocument, id="empty"),
        pytest.param(b"\x89PNG\r\n\x1a\n" + bytes(50), UnsupportedMediaType, id="image"),
        pytest.param(pdf([""]), NoTextLayer, id="scan"),
        pytest.param(pdf(["x"], encrypted=True), EncryptedDocument, id="password"),
        pytest.param(b"%PDF-1.4\ngarbage", BrokenDocument, id="broken"),
        pytest.param(bytes(range(128, 256)) * 20, UndecodableText, id="no encoding"),
        pytest.param(b"x" * 5001, DocumentTooLong, id="too long"),
    ],
)
async def test_each_fault_keeps_its_code(tmp_path: Path, data: bytes, error: type[KmserveError]) -> None:
    with pytest.raises(error) as caught:
        await parsed(tmp_path, data)
    assert str(tmp_path) not in caught.value.detail


async def test_too_slow(tmp_path: Path) -> None:
    slow = b"<html>" + b"<div>" * 200_000
    with pytest.raises(ParseLimit):
        await parsed(tmp_path, slow, seconds=1)
    assert _parsers_of_ours() == []


async def test_too_much_memory(tmp_path: Path) -> None:
    if sys.platform != "linux":
        unavailable("only Linux bounds a process's memory", ci_has_it=False)
    fat = docx(paragraph("words") * 30_000)
    with pytest.raises(ParseLimit):
        await parsed(tmp_path, fat, memory_bytes=96 * 1024**2)


@pytest.mark.parametrize("lost", [MemoryError, SystemError])
def test_memory_that_ran_out_is_told_however_a_library_tells_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: type[Exception]
) -> None:
    def read(*_: object) -> None:
        raise lost

    monkeypatch.setattr(parse_main, "read_document", read)
    assert parse_main._answer(tmp_path / "fat.docx", None, 100)["error"] == ParseLimit.code


async def test_a_cancelled_parse_leaves_no_process(tmp_path: Path) -> None:
    task = asyncio.create_task(parsed(tmp_path, b"<html>" + b"<div>" * 200_000))
    await asyncio.sleep(0.3)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert _parsers_of_ours() == []


def _parser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put a shell script in the parser's place."""
    executable = tmp_path / "parser"
    executable.write_text(f"#!/bin/sh\n{script}\n")
    executable.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(executable))


@pytest.mark.parametrize(
    ("script", "error"),
    [
        pytest.param("kill -SEGV $$", BrokenDocument, id="crash"),
        pytest.param("echo lost >&2; exit 3", BrokenDocument, id="exit"),
        pytest.param("kill -KILL $$", ParseLimit, id="killed for memory"),
        pytest.param("kill -XCPU $$", ParseLimit, id="killed for time"),
    ],
)
async def test_how_a_parser_dies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, error: type[KmserveError]) -> None:
    _parser(tmp_path, monkeypatch, f"cat > /dev/null; {script}")
    with pytest.raises(error):
        await parsed(tmp_path, b"words")


@pytest.mark.parametrize(
    ("death", "named"),
    [
        pytest.param("raise ValueError(text)", "ValueError", id="exception"),
        pytest.param("raise Odd(text)", "ended with 1", id="not even an Exception"),
        pytest.param("os.abort()", "Fatal Python error: Aborted", id="abort"),
    ],
)
async def test_a_parser_that_dies_over_a_document_puts_none_of_it_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, death: str, named: str
) -> None:
    _library(tmp_path, monkeypatch, death)
    with caplog.at_level(logging.DEBUG), pytest.raises(BrokenDocument) as caught:
        await parsed(tmp_path, f"our {CANARY} plan".encode(), filename="plan.txt")
    assert named in caplog.text
    assert 'reading.py", line' in caplog.text
    assert CANARY not in caplog.text + str(caught.value)


def _library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, death: str) -> None:
    """The parser's process imports a library that prints the text and dies over it, in two languages."""
    folder = tmp_path / "library"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "import os, sys\n"
        "class Odd(BaseException): pass\n"
        "def read_text(data):\n"
        "    text = data.decode()\n"
        "    print(text, file=sys.stderr, flush=True)\n"
        "    os.write(2, data)\n"
        f"    {death}\n"
        "import server.retrieval.formats.text as module\n"
        "module.read_text = read_text\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(folder))


async def test_the_parser_sees_no_secrets_and_no_titles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KMSERVE_SECRET_KEY", "s3cret")
    _parser(tmp_path, monkeypatch, f'cat > /dev/null; env > {tmp_path}/env; echo "$@" > {tmp_path}/arguments; exit 1')
    with pytest.raises(BrokenDocument):
        await parsed(tmp_path, b"words", filename="Layoffs 2027.txt")
    assert "s3cret" not in (tmp_path / "env").read_text()
    assert "Layoffs" not in (tmp_path / "arguments").read_text()


def test_the_parser_starts_light() -> None:
    heavy = "{'torch', 'transformers', 'sqlalchemy', 'pydantic', 'fastapi', 'numpy', 'mammoth', 'pypdfium2'}"
    code = f"import sys, server.retrieval.parse_main; print({heavy} & set(sys.modules))"
    root = Path(__file__).parents[4]
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def _parsers_of_ours() -> list[str]:
    listed = subprocess.run(["ps", "--ppid", str(os.getpid()), "-o", "args="], capture_output=True, text=True, check=False)
    return [line for line in listed.stdout.splitlines() if "parse_main" in line]
