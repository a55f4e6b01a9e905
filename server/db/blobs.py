"""Documents' bytes as files, one directory under the data directory. Knows nothing of what is in them.

A key is `<tenant>/<document>/<revision>`, with an extension for what is derived from it (`….txt`: the parsed text). A blob is whole or
absent: it is written beside its place, flushed, then renamed.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import uuid
from pathlib import Path

_PART = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")
_DEPTH = 3


class BlobStore:
    def __init__(self, root: Path) -> None:
        self._root = root

    def temporary(self) -> Path:
        """A new, not yet existing file on the blobs' own filesystem, to be written by the caller and adopted or unlinked."""
        folder = self._root / ".incoming"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder / uuid.uuid4().hex

    def adopt(self, temporary: Path, key: str) -> None:
        """Make a temporary file the blob `key`, replacing one of that name."""
        target = self._path(key)
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _flush(temporary)
        temporary.replace(target)
        _flush(target.parent)

    def write_text(self, key: str, text: str) -> None:
        temporary = self.temporary()
        try:
            temporary.write_text(text, encoding="utf-8", newline="")
            self.adopt(temporary, key)
        finally:
            temporary.unlink(missing_ok=True)

    def path(self, key: str) -> Path:
        """Where the blob lies, for those who read it from a file; FileNotFoundError if it does not."""
        path = self._path(key)
        if not path.is_file():
            raise FileNotFoundError(key)
        return path

    def read_bytes(self, key: str) -> bytes:
        return self.path(key).read_bytes()

    def read_text(self, key: str) -> str:
        with self.path(key).open(encoding="utf-8", newline="") as file:
            return file.read()

    def delete(self, key: str) -> None:
        self._path(key).unlink(missing_ok=True)

    def delete_prefix(self, prefix: str) -> None:
        """Delete everything under `<tenant>` or `<tenant>/<document>`; nothing there is no error."""
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self._path(prefix))

    def _path(self, key: str) -> Path:
        parts = key.split("/")
        if len(parts) > _DEPTH or not all(_PART.fullmatch(part) for part in parts):
            raise ValueError("a blob key has one to three plain names")
        return self._root.joinpath(*parts)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
