"""The object store below the disk as the modules' store sees it: named files that several machines share. Knows no library of one."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol


class Objects(Protocol):
    """A key is plain names with `/` between them. An object is whole or absent, and any thread may ask for it.

    Everything raises ObjectStoreUnavailable where the store cannot be reached or refuses.
    """

    def put(self, key: str, file: Path) -> None:
        """Keep the file's bytes under this key, in the place of what was there."""
        ...

    def get(self, key: str, file: Path) -> None:
        """Write the object into a new file. Raises FileNotFoundError where there is no such object, OSError when the disk fails."""
        ...

    def list(self, folder: str) -> list[str]:
        """The keys below a folder, which is a key's first names; none where there is no such folder."""
        ...

    def delete(self, key: str) -> None:
        """No such object is no error."""
        ...
