"""One file to its parsed text, whatever its format. Runs in the parser's process (parsing.py), whose limits are not set here."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from server.errors import DocumentTooLong, EmptyDocument, NoTextLayer
from server.retrieval import sniff
from server.retrieval.types import PAGE_BREAK, Page, ParsedDocument


def read_document(path: Path, filename: str | None, max_characters: int) -> ParsedDocument:
    """Raises the error of what is wrong with the file; each is named where it is found."""
    media_type = sniff.detect(path, filename)
    if media_type == sniff.PDF:
        return ParsedDocument(media_type=media_type, pages=_pdf_pages(path, max_characters))
    text = _read_flowing(path, media_type)
    if not text:
        raise EmptyDocument("the document has no text in it")
    _check_length(len(text), max_characters)
    return ParsedDocument(media_type=media_type, pages=(Page(number=None, text=text),))


def _read_flowing(path: Path, media_type: str) -> str:
    """Formats without pages. Their libraries are imported only when met: the process reads one file and ends."""
    if media_type == sniff.DOCX:
        from server.retrieval.formats.docx import read_docx

        return read_docx(path)
    if media_type == sniff.HTML:
        from server.retrieval.formats.html import read_html

        return read_html(path.read_bytes())
    if media_type == sniff.MARKDOWN:
        from server.retrieval.formats.markdown import read_markdown

        return read_markdown(path.read_bytes())
    from server.retrieval.formats.text import read_text

    return read_text(path.read_bytes())


def _pdf_pages(path: Path, max_characters: int) -> tuple[Page, ...]:
    from server.retrieval.formats.pdf import read_pdf

    pages = tuple(_limited(read_pdf(path), max_characters))
    if not any(page.text for page in pages):
        raise NoTextLayer("the PDF holds pictures of text only; run it through OCR and upload the result")
    return pages


def _limited(texts: Iterable[str], max_characters: int) -> Iterable[Page]:
    length = 0
    for number, text in enumerate(texts, start=1):
        length += len(text) + len(PAGE_BREAK)
        _check_length(length - len(PAGE_BREAK), max_characters)
        yield Page(number=number, text=text)


def _check_length(characters: int, max_characters: int) -> None:
    if characters > max_characters:
        raise DocumentTooLong(f"the document has more than {max_characters} characters of text; split it and upload the parts")
