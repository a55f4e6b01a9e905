"""Where an error came from, without what it says: an error met over a document may quote it, and logs must not.

Of our own errors and of the operating system's the message stays, for those hold no text. Standard library only: the parser uses it.
"""

from __future__ import annotations

import os
import re
import traceback
from collections.abc import Iterator
from typing import Final

from server.errors import KmserveError

_FRAME: Final = re.compile(r'\s*File "(?P<file>[^"\n]+\.py)", line \d+,? in [\w.<>]+')
_FATAL: Final = re.compile(
    r"Fatal Python error: (Aborted|Bus error|Floating(-| )point (exception|error)|Illegal instruction|Segmentation fault)"
)
_ERROR: Final = re.compile(r"(?:\w+\.)*[A-Z]\w*(?:Error|Exception|Exit|Interrupt)(?=:|\s|$)")


def without_text(error: BaseException) -> str:
    """Types, files, lines and functions of an error and of what caused it."""
    lines: list[str] = []
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        lines.append(f"{'caused by ' if lines else ''}{_named(found)}")
        lines += [f'  File "{frame.filename}", line {frame.lineno}, in {frame.name}' for frame in traceback.extract_tb(found.__traceback__)]
        found = found.__cause__ or (None if found.__suppress_context__ else found.__context__)
    return "\n".join(lines)


def frames_in(output: str) -> str:
    """What a Python process that died says of the place: the frames and error types in its output, and nothing else of it.

    A frame counts only if its file exists here, an error type only behind frames: text that looks like either is rare enough.
    """
    return "\n".join(_frames(output.splitlines()))


def _frames(lines: list[str]) -> Iterator[str]:
    inside = False
    for line in lines:
        if (fatal := _FATAL.match(line)) is not None:
            yield fatal.group()
        elif (frame := _FRAME.match(line)) is not None and os.path.isfile(frame["file"]):
            inside = True
            yield frame.group()
        elif inside and not line.startswith("  "):
            inside = False
            if (kind := _ERROR.match(line)) is not None:
                yield kind.group()


def _named(error: BaseException) -> str:
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    if isinstance(error, KmserveError):
        return f"{name}: {error.detail}"
    if type(error).__module__ == "builtins" and isinstance(error, OSError) and error.errno is not None:
        return f"{name}: {os.strerror(error.errno)}"
    return name
