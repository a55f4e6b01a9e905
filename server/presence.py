"""The one API process of a data directory: the lock that it holds, and the address that it left in the lock's file for commands to find.

Standard library only: commands start fast.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from server.settings import Settings


@contextlib.contextmanager
def sole_api_process(settings: Settings) -> Iterator[None]:
    """Hold the lock that a second API process would need: one for each machine, whose model it loads, and one for each embedded index.

    RuntimeError if another process holds it, as with several workers of one web server.
    """
    descriptor = os.open(_lock_file(settings), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if not _got(descriptor, fcntl.LOCK_EX):
            message = "another API process uses this data directory: run one process, with one worker, or set KMSERVE_DATA_DIR to another"
            raise RuntimeError(message)
        _record(descriptor, settings.url if settings.port else "")
        yield
        _record(descriptor, "")
    finally:
        os.close(descriptor)


def running_url(settings: Settings) -> str | None:
    """Where the API process that uses this data directory listens, on whatever port it got; None when there is none.

    An address alone proves nothing: after a crash another program may listen there, and would be sent an API key.
    """
    try:
        descriptor = os.open(_lock_file(settings), os.O_RDONLY)
    except OSError:
        return None
    try:
        url = os.read(descriptor, 1000).decode(errors="replace").strip()
        return url if url and not _got(descriptor, fcntl.LOCK_SH) else None
    finally:
        os.close(descriptor)


def _lock_file(settings: Settings) -> Path:
    name = "api" if settings.qdrant_url is None else f"api-{socket.gethostname()}"
    return settings.root / f"{name}.lock"


def _got(descriptor: int, kind: int) -> bool:
    """Whether the lock was free and is now ours."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            raise
        return False
    return True


def _record(descriptor: int, url: str) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, url.encode(), 0)
