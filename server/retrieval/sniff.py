"""Which format an upload is, from its bytes. The filename only decides where the bytes leave Markdown or plain text open.

Reads a bounded part of the file and unpacks nothing, so it is safe outside the parser's process. Knows nothing of a declared content type.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePath
from typing import Final

from server.errors import EmptyDocument, EncryptedDocument, UnsupportedMediaType

PDF: Final = "application/pdf"
DOCX: Final = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
HTML: Final = "text/html"
MARKDOWN: Final = "text/markdown"
TEXT: Final = "text/plain"

_WINDOW: Final = 64 * 1024
_ZIP: Final = (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")
_OLE: Final = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_ENCRYPTED_PACKAGE: Final = "EncryptedPackage".encode("utf-16-le")
_BOMS: Final = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")
_UNSUPPORTED: Final = (
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"BM", "a bitmap image"),
    (b"II*\x00", "a TIFF image"),
    (b"MM\x00*", "a TIFF image"),
    (b"RIFF", "an image, sound or video"),
    (b"<svg", "an SVG image"),
    (b"MZ", "a program"),
    (b"\x7fELF", "a program"),
    (b"\xca\xfe\xba\xbe", "a program"),
    (b"\xcf\xfa\xed\xfe", "a program"),
    (b"\x00asm", "a program"),
    (b"\x1f\x8b", "a compressed archive"),
    (b"BZh", "a compressed archive"),
    (b"\xfd7zXZ", "a compressed archive"),
    (b"7z\xbc\xaf", "a compressed archive"),
    (b"Rar!", "a compressed archive"),
    (b"\x28\xb5\x2f\xfd", "a compressed archive"),
    (b"SQLite format 3", "a database"),
    (b"{\\rtf", "a rich text file"),
    (b"%!PS", "a PostScript file"),
    (b"ID3", "a sound file"),
    (b"OggS", "a sound file"),
    (b"fLaC", "a sound file"),
)
_SHORT_MAGIC: Final = 3
_CONTROL: Final = bytes(byte for byte in range(32) if byte not in b"\t\n\r\f\x1b")
_HTML_START: Final = re.compile(r"(<\?xml[^>]*>|<!--.*?-->|\s)*<(!doctype\s+html|html|head|body)\b", re.IGNORECASE | re.DOTALL)
_HTML_TAG: Final = re.compile(r"</(p|div|table|ul|ol|h[1-6]|section|article|main|span|body)>", re.IGNORECASE)
_MARKDOWN_STRONG: Final = (
    re.compile(r"^#{1,6} \S", re.MULTILINE),
    re.compile(r"^(```|~~~)", re.MULTILINE),
    re.compile(r"\[[^\]\n]+\]\([^)\s]+\)"),
    re.compile(r"^ *\|? *:?-{2,}:? *\|[ |:-]*$", re.MULTILINE),
    re.compile(r"^\S.*\n(={3,}|-{3,})$", re.MULTILINE),
)
_MARKDOWN_WEAK: Final = (
    re.compile(r"^ {0,3}([-*+]|\d{1,3}[.)]) \S", re.MULTILINE),
    re.compile(r"(?<!\w)(\*\*|__)\S[^*\n]*?\S\1(?!\w)"),
    re.compile(r"(?<!`)`[^`\n]+`(?!`)"),
    re.compile(r"^> \S", re.MULTILINE),
)


def detect(path: Path, filename: str | None = None) -> str:
    """The media type of a supported file.

    Raises EmptyDocument for no bytes, EncryptedDocument for a password-protected Office file, UnsupportedMediaType for anything else that
    is not text.
    """
    head, tail = _ends(path)
    if not head.strip():
        raise EmptyDocument("the document is empty; upload one with text in it")
    if b"%PDF-" in head[:1024]:
        return PDF
    if head.startswith(_ZIP):
        return _zip_type(head, tail)
    if head.startswith(_OLE):
        raise _ole_error(path)
    _refuse_known_binaries(head)
    return _text_type(_rough_text(head), filename)


def _ends(path: Path) -> tuple[bytes, bytes]:
    with path.open("rb") as file:
        head = file.read(_WINDOW)
        file.seek(max(0, path.stat().st_size - _WINDOW))
        return head, file.read(_WINDOW)


def _zip_type(head: bytes, tail: bytes) -> str:
    """The part's name stands before its bytes at the front of the archive, and in the directory at its end."""
    if b"word/document" in head or b"word/document" in tail:
        return DOCX
    raise _unsupported("an archive or another Office format")


def _ole_error(path: Path) -> UnsupportedMediaType | EncryptedDocument:
    """A locked .docx is an OLE file with one stream of this name; other OLE files are the Office formats of before 2007."""
    with path.open("rb") as file:
        previous = b""
        while block := file.read(_WINDOW):
            if _ENCRYPTED_PACKAGE in previous + block:
                return EncryptedDocument("the document is protected by a password; upload an unprotected copy")
            previous = block[-len(_ENCRYPTED_PACKAGE) :]
    return _unsupported("an old Office format")


def _refuse_known_binaries(head: bytes) -> None:
    start = head[:256].lstrip(b" \t\r\n\xef\xbb\xbf")
    binary = _is_binary(head)
    for magic, what in _UNSUPPORTED:
        if start.startswith(magic) and (binary or len(magic) > _SHORT_MAGIC):
            raise _unsupported(what)
    if binary:
        raise _unsupported("binary data")


def _is_binary(head: bytes) -> bool:
    """Control bytes that text has not; in UTF-16 every other byte may be zero, but hardly one between them."""
    if head.startswith(_BOMS):
        return False
    control = len(head) - len(head.translate(None, _CONTROL))
    zeros = [head[start::2].count(0) for start in (0, 1)]
    wide = max(zeros) > len(head) // 5 and control - max(zeros) <= len(head) // 100
    return not wide and control > len(head) // 100


def _rough_text(head: bytes) -> str:
    """Readable enough to look for ASCII markup in it."""
    for bom, encoding in zip(_BOMS, ("utf-8", "utf-16-le", "utf-16-be"), strict=True):
        if head.startswith(bom):
            return head[len(bom) :].decode(encoding, errors="replace").replace("\r\n", "\n")
    return head.replace(b"\x00", b"").decode("utf-8", errors="replace").replace("\r\n", "\n")


def _text_type(text: str, filename: str | None) -> str:
    suffix = PurePath(filename or "").suffix.lower()
    tags = len(_HTML_TAG.findall(text))
    if _HTML_START.match(text) or (tags and (text.lstrip().startswith("<") or suffix in (".html", ".htm"))):
        return HTML
    strong = sum(1 for pattern in _MARKDOWN_STRONG if pattern.search(text))
    weak = sum(1 for pattern in _MARKDOWN_WEAK if pattern.search(text))
    if strong and strong + weak > 1:
        return MARKDOWN
    return MARKDOWN if suffix in (".md", ".markdown") else TEXT


def _unsupported(what: str) -> UnsupportedMediaType:
    return UnsupportedMediaType(f"this is {what}; upload PDF, DOCX, HTML, Markdown or plain text")
