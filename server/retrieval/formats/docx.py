"""A Word document's text: paragraphs, headings, lists, tables, notes. Pictures, headers and footers are left out."""

from __future__ import annotations

import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any, Final
from xml.parsers.expat import ExpatError

import mammoth  # type: ignore[import-untyped]

from server.errors import BrokenDocument, EncryptedDocument, ParseLimit
from server.retrieval.formats.html import html_to_text

MAX_UNPACKED_BYTES: Final = 128 * 1024 * 1024
"""Of the XML parts together, which is all that is unpacked."""
MAX_PARTS: Final = 10_000
_XML: Final = (".xml", ".rels")
_BROKEN: Final = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    ExpatError,
    KeyError,
    ValueError,
    EOFError,
    NotImplementedError,
    AttributeError,
)


def read_docx(path: Path) -> str:
    """Raises EncryptedDocument, ParseLimit for one that unpacks to too much, BrokenDocument."""
    try:
        _check_archive(path)
        with path.open("rb") as file:
            return html_to_text(mammoth.convert_to_html(file, convert_image=_no_image).value)
    except _BROKEN as error:
        raise BrokenDocument("the Word document cannot be read; open it in Word and save it again") from error


def _check_archive(path: Path) -> None:
    """Unpacking stops at the sizes that the archive declares, so they can be trusted as bounds."""
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
    if any(part.flag_bits & 1 for part in parts):
        raise EncryptedDocument("the document is protected by a password; upload an unprotected copy")
    unpacked = sum(part.file_size for part in parts if part.filename.lower().endswith(_XML))
    if len(parts) > MAX_PARTS or unpacked > MAX_UNPACKED_BYTES:
        raise ParseLimit("the document unpacks to more than the server reads; split it and upload the parts")


@mammoth.images.img_element  # type: ignore[untyped-decorator]
def _no_image(_image: Any) -> dict[str, str]:
    """Pictures are not even unpacked."""
    return {}
