"""Files that a command writes at the end of hours of work: their folder is asked for at its beginning, and no file is ever half written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def require_folder(folder: Path) -> None:
    """Makes it where it is not there. Raises ValueError where nothing can be written into it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{folder} cannot be made ({(error.strerror or 'error').lower()}): name another folder") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f"nothing can be written into {folder}: name another folder")


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """What is written to the path that is given takes the place of `path` in one step, at the end."""
    part = path.with_name(f"{path.name}.part")
    yield part
    part.replace(path)
