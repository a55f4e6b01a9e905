"""The parser's process: `python -m server.retrieval.parse_main`, a request as JSON on stdin, a document or an error as JSON on stdout.

It lives for one file under hard limits, without the server's environment; what a hostile file does to it stays in it. What libraries print
goes nowhere, for it may be the file's text; standard error says where the process died and nothing else.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import resource
import sys
from pathlib import Path
from typing import Any, BinaryIO

from server.errors import BrokenDocument, KmserveError, ParseLimit
from server.retrieval.reading import read_document
from server.traces import without_text


def main() -> None:
    request = json.load(sys.stdin)
    output = _take_streams()
    _limit(request["cpu_seconds"], request["memory_bytes"])
    answer = _answer(Path(request["path"]), request["filename"], request["max_characters"])
    with output:
        output.write(json.dumps(answer, ensure_ascii=False).encode())


def _answer(path: Path, filename: str | None, max_characters: int) -> dict[str, Any]:
    """Whatever a library raises over a file is the file's fault; its message may quote the file, so only its type is passed on."""
    try:
        parsed = read_document(path, filename, max_characters)
    except KmserveError as error:
        return {"error": error.code, "detail": error.detail}
    except (MemoryError, SystemError):  # the latter is what is left of the former where C code lost it on the way
        return {"error": ParseLimit.code, "detail": "the document needs too much memory to read; split it and upload the parts"}
    except Exception as error:
        detail = "the document cannot be read; open it in its own program and save it again"
        return {"error": BrokenDocument.code, "detail": detail, "cause": without_text(error)}
    return {"media_type": parsed.media_type, "pages": [{"number": page.number, "text": page.text} for page in parsed.pages]}


def _take_streams() -> BinaryIO:
    """Keep stdout for the answer and stderr for the place of a crash; nothing else is heard."""
    output, errors = os.fdopen(os.dup(1), "wb"), os.fdopen(os.dup(2), "w")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    faulthandler.enable(errors)
    sys.excepthook = lambda _kind, error, _trace: print(without_text(error), file=errors, flush=True)
    return output


def _limit(cpu_seconds: int, memory_bytes: int) -> None:
    for limit, value in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_CPU, cpu_seconds), (resource.RLIMIT_AS, memory_bytes)):
        with contextlib.suppress(ValueError, OSError):  # macOS bounds no address space
            resource.setrlimit(limit, (value, value))


if __name__ == "__main__":
    main()
