"""Parse a file in a process of its own, with limits of time and memory. Knows nothing of formats (reading.py does).

The process sees none of the server's environment, for that holds secrets, and its request goes through a pipe, for titles are private.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any, Final

import server
from server import errors
from server.errors import BrokenDocument, InvalidInput, KmserveError, ParseLimit
from server.retrieval.types import Page, ParsedDocument
from server.traces import frames_in

logger = logging.getLogger(__name__)

_OUT_OF_LIMIT: Final = (-signal.SIGXCPU, -signal.SIGKILL)
_CODES: Final[dict[str, type[KmserveError]]] = {
    error.code: error
    for error in (
        errors.BrokenDocument,
        errors.DocumentTooLong,
        errors.EmptyDocument,
        errors.EncryptedDocument,
        errors.NoTextLayer,
        errors.ParseLimit,
        errors.UndecodableText,
        errors.UnsupportedMediaType,
    )
}


async def parse(path: Path, *, filename: str | None, seconds: float, memory_bytes: int, max_characters: int) -> ParsedDocument:
    """Raises the error of the file (see reading.py), ParseLimit for too much time or memory, BrokenDocument when it kills the parser."""
    request = {
        "path": str(path),
        "filename": filename,
        "cpu_seconds": int(seconds) + 1,
        "memory_bytes": memory_bytes,
        "max_characters": max_characters,
    }
    return _parsed(await _ask_parser(request, seconds))


async def _ask_parser(request: dict[str, Any], seconds: float) -> dict[str, Any]:
    pipe = asyncio.subprocess.PIPE
    command = (sys.executable, "-P", "-m", "server.retrieval.parse_main")
    process = await asyncio.create_subprocess_exec(
        *command, stdin=pipe, stdout=pipe, stderr=pipe, env=_environment(), start_new_session=True
    )
    try:
        async with asyncio.timeout(seconds):
            output, noise = await process.communicate(json.dumps(request).encode())
    except TimeoutError as error:
        raise ParseLimit("the document takes too long to read; split it and upload the parts") from error
    finally:
        await _end(process)
    if process.returncode != 0:
        raise _crash(process.returncode, noise)
    answer: dict[str, Any] = json.loads(output)
    return answer


def _environment() -> dict[str, str]:
    root = str(Path(server.__file__).parents[1])
    paths = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUTF8": "1", "PATH": os.defpath}


async def _end(process: asyncio.subprocess.Process) -> None:
    """Leave no parser behind, neither running nor unwaited for."""
    if process.returncode is None:
        process.kill()
        await asyncio.shield(process.wait())


def _crash(returncode: int | None, noise: bytes) -> InvalidInput:
    if returncode in _OUT_OF_LIMIT:
        return ParseLimit("the document takes too long or too much memory to read; split it and upload the parts")
    where = frames_in(noise.decode(errors="replace")) or "it did not say where"
    logger.warning("the parser ended with %s and %d bytes on standard error: %s", returncode, len(noise), where)
    return BrokenDocument("the document cannot be read; open it in its own program and save it again")


def _parsed(answer: dict[str, Any]) -> ParsedDocument:
    if (code := answer.get("error")) is not None:
        if cause := answer.get("cause"):
            logger.warning("the parser met %s", cause)
        raise _CODES[code](answer["detail"])
    pages = tuple(Page(number=page["number"], text=page["text"]) for page in answer["pages"])
    return ParsedDocument(media_type=answer["media_type"], pages=pages)
