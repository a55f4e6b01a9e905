"""Files that survive a crash and are read without trust: durable writes, and bounded reads that follow no link. Knows no formats."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

_PORTION = 1 << 20
See = Callable[[memoryview, int], None]
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
"""O_NONBLOCK: opening a pipe somebody put in a file's place must not wait for a writer."""


def write_durably(path: Path, data: bytes) -> None:
    """Create `path` (0600; it must not exist) and return once its bytes are on the disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def flush(path: Path) -> None:
    """fsync one file or one directory's entries."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_tree(directory: Path) -> None:
    """fsync every file and directory below `directory`, and itself."""
    for folder, _, names in os.walk(directory, topdown=False):
        for name in names:
            flush(Path(folder, name))
        flush(Path(folder))


def make_durably(directory: Path) -> None:
    """Create a directory and its missing parents (0700), each one's entry on the disk."""
    missing = [directory, *directory.parents]
    for folder in reversed([folder for folder in missing if not folder.exists()]):
        folder.mkdir(mode=0o700, exist_ok=True)
        flush(folder.parent)


def read_regular(path: Path, limit: int, see: See | None = None) -> bytearray:
    """The bytes of a regular file of at most `limit` bytes. ValueError if it is missing, a link, no regular file, or longer. `see` is told
    of each portion, with all of the file's room and where what has been read ends: the system reads on meanwhile."""
    descriptor = _open_without_trust(path)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{path.name} is not a regular file")
        if status.st_size > limit:
            raise ValueError(f"{path.name} has {status.st_size} bytes, more than {limit}")
        # One byte more than there should be, to see that there is none; taking memory for `limit` takes longer than the reading.
        data = _read_up_to(descriptor, status.st_size, see)
    finally:
        os.close(descriptor)
    if len(data) != status.st_size:
        raise ValueError(f"{path.name} changed while it was read")
    return data


def _read_up_to(descriptor: int, size: int, see: See | None) -> bytearray:
    data = bytearray(size + 1)
    end = 0
    with memoryview(data) as room, room[:size] as whole:
        while count := os.readv(descriptor, [room[end : end + _PORTION]]):
            end += count
            if see is not None:
                see(whole, min(end, size))
    del data[end:]
    return data


def _open_without_trust(path: Path) -> int:
    try:
        return os.open(path, _READ)
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{path.name} is missing") from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ValueError(f"{path.name} is a symbolic link") from None
        raise
