"""A multipart upload as it arrives: small fields are kept, the file's bytes are handed on piece by piece and never gathered here.

Knows nothing of requests, disks or what the fields mean.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TypeVar

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from server.errors import InvalidInput

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

T = TypeVar("T")
FILE: Final = "file"
MAX_FIELD_BYTES: Final = 64 * 1024
MAX_PARTS: Final = 16


class Form:
    """`feed` returns the file's bytes of that piece. After `close`, `fields` is complete; `filename` is None for a file without one."""

    def __init__(self, boundary: bytes) -> None:
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        self.has_file = False
        self._complete = False
        self._parts = 0
        self._header = b""
        self._value = b""
        self._headers: dict[bytes, bytes] = {}
        self._name: str | None = None
        self._field = bytearray()
        self._file: list[bytes] = []
        self._parser = _guarded(lambda: MultipartParser(boundary, self._callbacks()))

    def feed(self, data: bytes) -> bytes:
        """Raises InvalidInput for what is no multipart form, or not one of an upload."""
        _guarded(lambda: self._parser.write(data))
        piece = b"".join(self._file)
        self._file.clear()
        return piece

    def close(self) -> None:
        """Raises InvalidInput for a form that was cut short or has no file."""
        if not self._complete:
            raise InvalidInput("the multipart body ends before its last boundary")
        if not self.has_file:
            raise InvalidInput(f"the form has no file: send it as the part `{FILE}`")

    def _callbacks(self) -> MultipartCallbacks:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._on_header,
            "on_header_value": self._on_value,
            "on_header_end": self._end_header,
            "on_headers_finished": self._name_part,
            "on_part_data": self._on_data,
            "on_part_end": self._end_part,
            "on_end": self._end,
        }

    def _begin(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise InvalidInput(f"the form has more than {MAX_PARTS} parts")
        self._headers, self._name = {}, None
        self._field.clear()

    def _on_header(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _on_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        self._headers[self._header.lower()] = self._value
        self._header = self._value = b""

    def _name_part(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b"").decode("latin-1"))
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if not name or name in self.fields or (name == FILE and self.has_file):
            raise InvalidInput("each part of the form needs a name of its own")
        self._name = name
        if name == FILE:
            self.has_file = True
            filename = options.get(b"filename")
            self.filename = None if filename is None else filename.decode("utf-8", "replace")

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        if self._name == FILE:
            self._file.append(data[start:end])
            return
        self._field += data[start:end]
        if len(self._field) > MAX_FIELD_BYTES:
            raise InvalidInput(f"the field {self._name} has more than {MAX_FIELD_BYTES} bytes")

    def _end_part(self) -> None:
        if self._name is not None and self._name != FILE:
            try:
                self.fields[self._name] = self._field.decode()
            except UnicodeDecodeError:
                raise InvalidInput(f"the field {self._name} is not UTF-8") from None

    def _end(self) -> None:
        self._complete = True


def boundary_of(content_type: str) -> bytes | None:
    """None for what is no multipart form."""
    kind, options = parse_options_header(content_type)
    return options.get(b"boundary") if kind == b"multipart/form-data" else None


def _guarded(step: Callable[[], T]) -> T:
    try:
        return step()
    except FormParserError as error:
        raise InvalidInput("the body is not the multipart form that its content type announces") from error
