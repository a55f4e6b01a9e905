"""The text layer of a PDF, page by page. Pictures of text are not read."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pypdfium2 import PdfDocument, PdfiumError  # type: ignore[import-untyped]
from pypdfium2.raw import FPDF_ERR_PASSWORD, FPDF_ERR_SECURITY  # type: ignore[import-untyped]

from server.errors import BrokenDocument, EmptyDocument, EncryptedDocument
from server.retrieval.formats.text import clean

_HYPHENATION: Final = re.compile("[\x02\ufffe\u00ad](?:\r?\n)?")
"""What PDFium puts for a hyphen that only divides a word between two lines."""
_LIGATURES: Final = str.maketrans({"ﬀ": "ff", "ﬁ": "fi", "ﬂ": "fl", "ﬃ": "ffi", "ﬄ": "ffl", "ﬅ": "st", "ﬆ": "st"})


def read_pdf(path: Path) -> Iterator[str]:
    """The text of each page, empty for one without text. Raises EncryptedDocument, BrokenDocument, EmptyDocument."""
    document = _open(path)
    if len(document) == 0:
        raise EmptyDocument("the PDF has no pages")
    for number in range(len(document)):
        yield clean(_HYPHENATION.sub("", _page_text(document, number)).translate(_LIGATURES))


def _open(path: Path) -> PdfDocument:
    try:
        return PdfDocument(path)
    except PdfiumError as error:
        if error.err_code in (FPDF_ERR_PASSWORD, FPDF_ERR_SECURITY):
            raise EncryptedDocument("the PDF is protected by a password; upload an unprotected copy") from error
        raise BrokenDocument("the PDF cannot be read; open it in a viewer and save it again") from error


def _page_text(document: PdfDocument, number: int) -> str:
    try:
        page = document[number]
        text = page.get_textpage()
        try:
            return str(text.get_text_bounded())
        finally:
            text.close()
            page.close()
    except PdfiumError as error:
        raise BrokenDocument(f"page {number + 1} of the PDF cannot be read; open it in a viewer and save it again") from error
