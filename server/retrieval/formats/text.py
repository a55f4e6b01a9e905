"""Bytes to text: the encoding is found from the bytes, and what no text holds is taken out. Knows nothing of markup."""

from __future__ import annotations

import codecs
import re
from typing import Final

from charset_normalizer import from_bytes

from server.errors import UndecodableText

_BOMS: Final = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_NEWLINES: Final = re.compile("\r\n?|[\x0b\x0c\x85\u2028\u2029]")
_FORBIDDEN: Final = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufeff\ufffe\uffff]")
"""Control characters (PostgreSQL stores no NUL), lone surrogates (which have no UTF-8) and what is not a character."""
_LINE_ENDS: Final = re.compile(r"[^\S\n]+(?=\n)")
_BLANK_LINES: Final = re.compile(r"\n{4,}")


def read_text(data: bytes) -> str:
    return clean(decode(data))


def decode(data: bytes, declared: str | None = None) -> str:
    """By byte order mark, else as UTF-8, else as `declared`, else as the most plausible encoding. Raises UndecodableText."""
    for bom, encoding in _BOMS:
        if data.startswith(bom):
            return _strict(data[len(bom) :], encoding) or _undecodable()
    text = _strict(data, "utf-8") if b"\x00" not in data else None
    if text is None and declared is not None:
        text = _strict(data, declared)
    if text is not None:
        return text
    best = from_bytes(data).best()
    return str(best) if best is not None else _undecodable()


def clean(text: str) -> str:
    """Newlines as \\n, at most two blank lines in a row, nothing that cannot be stored, no white space around or at a line's end."""
    text = _FORBIDDEN.sub("", _NEWLINES.sub("\n", text)).replace("\u00a0", " ")
    return _BLANK_LINES.sub("\n\n\n", _LINE_ENDS.sub("", text)).strip()


def _strict(data: bytes, encoding: str) -> str | None:
    try:
        return data.decode(encoding)
    except (UnicodeDecodeError, LookupError):
        return None


def _undecodable() -> str:
    raise UndecodableText("the text's encoding is not known; save the file as UTF-8 and upload it again")
