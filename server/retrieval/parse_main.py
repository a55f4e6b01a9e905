"""The parser's process: `python -m server.retrieval.parse_main`, a request as JSON on stdin, a document or an error as JSON on stdout.

It lives for one file under hard limits, without the server's environment; what a hostile file does to it stays in it.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
from pathlib import Path
from typing import Any

from server.errors import BrokenDocument, KmserveError, ParseLimit
from server.retrieval.reading import read_document


def main() -> None:
    request = json.load(sys.stdin)
    output = _take_stdout()
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
    except MemoryError:
        return {"error": ParseLimit.code, "detail": "the document needs too much memory to read; split it and upload the parts"}
    except Exception as error:
        detail = "the document cannot be read; open it in its own program and save it again"
        return {"error": BrokenDocument.code, "detail": detail, "cause": type(error).__name__}
    return {"media_type": parsed.media_type, "pages": [{"number": page.number, "text": page.text} for page in parsed.pages]}


def _take_stdout() -> Any:
    """Keep stdout for the answer; what a library prints goes to stderr."""
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return output


def _limit(cpu_seconds: int, memory_bytes: int) -> None:
    for limit, value in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_CPU, cpu_seconds), (resource.RLIMIT_AS, memory_bytes)):
        with contextlib.suppress(ValueError, OSError):  # macOS bounds no address space
            resource.setrlimit(limit, (value, value))


if __name__ == "__main__":
    main()
