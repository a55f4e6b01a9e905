"""Object stores in memory for tests, which can be made to fail, and stores of modules over them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from obstore.store import MemoryStore

from server.errors import ObjectStoreUnavailable
from server.modules.cached_store import CachedStore
from server.modules.objects import Objects
from server.storage.object_store import StoredObjects

PLENTY = 10**9


@dataclass(kw_only=True)
class FaultyObjects:
    """Passes everything on to `objects` until it is `down`, or `puts` objects were written; `before_get` runs before an object is read."""

    objects: Objects = field(default_factory=lambda: StoredObjects(MemoryStore()))
    down: bool = False
    puts: int | None = None
    before_get: Callable[[str], object] = lambda key: None
    asked: list[str] = field(default_factory=list)

    def put(self, key: str, file: Path) -> None:
        self._ask(f"put {key}")
        if self.puts is not None:
            self.puts -= 1
            if self.puts < 0:
                raise ObjectStoreUnavailable("cut off")
        self.objects.put(key, file)

    def get(self, key: str, file: Path) -> None:
        self._ask(f"get {key}")
        self.before_get(key)
        self.objects.get(key, file)

    def list(self, folder: str) -> list[str]:
        self._ask(f"list {folder}")
        return self.objects.list(folder)

    def delete(self, key: str) -> None:
        self._ask(f"delete {key}")
        self.objects.delete(key)

    def _ask(self, what: str) -> None:
        self.asked.append(what)
        if self.down:
            raise ObjectStoreUnavailable("down")


def replica(folder: Path, objects: Objects, budget: int = PLENTY, url: str = "") -> CachedStore:
    """The store of one machine with a data directory of its own."""
    return CachedStore(folder / "modules", objects, budget, url)
