"""A store of artefacts whose directory is a cache of an object store, which other machines share.

An artefact's objects lie below its place and its manifest's hash, `tenants/<tenant>/documents/<document>/<digest>/<manifest sha256>/…`:
what a row names never changes, and two attempts with equal tensors never write over one another. The manifest is written last, and what
has none is no artefact. Knows nothing of tensors or rows: who reads what was fetched proves it, before it is put in its place.

An artefact on the disk bears a mark, an empty file, once its objects were up. If they are gone since, another machine deleted them: what
bears the mark leaves the disk as it is, and what does not stays there until a row was found that names it (`server/caching.py`).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from threading import Lock, Thread

from server.modules.files import flush, flush_tree, make_durably
from server.modules.manifest import DIGEST
from server.modules.objects import Objects
from server.modules.store import ModuleStore, clear_abandoned, size_of

logger = logging.getLogger(__name__)

_MANIFEST = "manifest.json"
_MARK = ".uploaded"
_TRIES = 10


class CachedStore(ModuleStore):
    """`budget`: bytes of artefacts that the directory keeps; the least recently read leave first. `url`: which object store it is, for
    what was brought to another one is still to be brought to this one."""

    def __init__(self, root: Path, objects: Objects, budget: int, url: str = "") -> None:
        super().__init__(root)
        self._objects = objects
        self._mark = f"{_MARK}-{hashlib.sha256(url.encode()).hexdigest()[:16]}"
        self._budget = budget
        self._room = 0
        """What may still be placed before the disk is looked at; processes that share it each look for themselves."""
        self._trimming = Lock()
        self._counting = Lock()
        self._counts = dict.fromkeys(("loads", "load_failures", "load_seconds", "loading", "evictions", "absent"), 0.0)

    def upload(self, staged: Path, target: Path) -> frozenset[str]:
        put = self._upload(staged, target)
        if target != staged and target.is_dir():  # `publish` will keep it
            put |= self._upload(target, target)
        return put

    def withdraw(self, target: Path, manifest_sha256: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            if _manifest_sha256(target) == manifest_sha256:
                (target / self._mark).unlink()
        self._delete_objects(f"{self._key(target)}/{manifest_sha256}")

    def is_marked(self, directory: Path) -> bool:
        """Whether the artefact on the disk was in the object store once."""
        return (directory / self._mark).exists()

    def delete(self, tenant: str, document: str, digest: str) -> None:
        try:
            self._delete_objects(self._key(self.path(tenant, document, digest)))
        finally:
            super().delete(tenant, document, digest)

    def delete_extractor(self, owner: str, digest: str, manifest_sha256: str) -> None:
        try:
            self._delete_objects(f"{self._key(self.extractor_path(owner, digest))}/{manifest_sha256}")
        finally:
            super().delete_extractor(owner, digest, manifest_sha256)

    def delete_document(self, tenant: str, document: str) -> None:
        """Objects first: what is fetched meanwhile goes with the directory. The directory goes whether they can be deleted or not."""
        try:
            self._delete_objects(self._key(self._document(tenant, document)))
        finally:
            super().delete_document(tenant, document)

    def has(self, directory: Path, manifest_sha256: str) -> bool:
        return super().has(directory, manifest_sha256) or self._is_up(self._key(directory), manifest_sha256)

    def below(self, tenant: str) -> frozenset[Path]:
        keys = self._objects.list(self._key(self._root / "tenants" / tenant))
        return frozenset((self._root / key).parent.parent for key in keys if key.endswith(f"/{_MANIFEST}"))

    @contextlib.contextmanager
    def kept(self, directory: Path, manifest_sha256: str) -> Iterator[None]:
        with contextlib.ExitStack() as held:
            held.enter_context(self.held(directory))
            with contextlib.suppress(FileNotFoundError):
                if not _is(directory, manifest_sha256):
                    with self.fetched(directory, manifest_sha256) as staged:
                        # A lock is on the directory, whatever its name: none makes room with it from its first moment in its place.
                        held.enter_context(self.held(staged))
                        self.place(staged, directory)
            yield

    @contextlib.contextmanager
    def held(self, directory: Path) -> Iterator[None]:
        """Nobody on this machine drives the artefact from the disk meanwhile, and it is the most recently read one."""
        with _locked(directory, fcntl.LOCK_SH):
            with contextlib.suppress(OSError):
                os.utime(directory)
            yield

    @contextlib.contextmanager
    def fetched(self, directory: Path, manifest_sha256: str) -> Iterator[Path]:
        """A copy of what the object store has of an artefact, beside its place; if it was not placed, it is gone afterwards.

        Raises FileNotFoundError where there is no such artefact, or it was deleted meanwhile; ObjectStoreUnavailable; OSError.
        """
        started = time.perf_counter()
        self._count(loading=1)
        try:
            with _staged(directory) as staged:
                self._download(f"{self._key(directory)}/{manifest_sha256}", staged)
                (staged / self._mark).touch(mode=0o600)
                yield staged
        except BaseException as error:
            self._count(load_failures=1, absent=isinstance(error, FileNotFoundError))
            raise
        else:
            self._count(loads=1)
        finally:
            self._count(loading=-1, load_seconds=time.perf_counter() - started)

    def place(self, staged: Path, directory: Path) -> None:
        """Put a fetched and proven artefact where it belongs, in the place of what is there; room for it is made beside the caller."""
        flush_tree(staged)
        self._room -= size_of(staged)
        self.drop(directory)
        try:
            staged.rename(directory)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):  # another process has just placed it
                raise
        flush(directory.parent)
        if self._room < 0:
            Thread(target=self.trim, name="trim-modules", daemon=True).start()

    def trim(self) -> None:
        """Where the disk holds more than the budget, drive from it what was least recently read, until a tenth of the budget is free; but
        nothing that is being read, and nothing that was never in the object store. What an interrupted fetch or publication left long ago
        goes, too. Asks nothing of the object store."""
        if not self._trimming.acquire(blocking=False):
            return
        try:
            for folder in self._root.glob("tenants/*/documents/*"):
                clear_abandoned(folder)
            self._make_room()
        except OSError:
            logger.warning("the disk keeps more than its budget for now", exc_info=True)
        finally:
            self._trimming.release()

    def _make_room(self) -> None:
        sizes = {directory: size_of(directory) for directory in self.artefacts()}
        self._room = self._budget - sum(sizes.values())
        for directory in sorted(sizes, key=_last_read) if self._room < 0 else ():
            with contextlib.suppress(FileNotFoundError):
                self._room += sizes[directory] if self._evict(directory) else 0
            if self._room >= self._budget // 10:
                return

    def artefacts(self) -> list[Path]:
        """What is on the disk, in its place."""
        found = (*self._root.glob("tenants/*/documents/*/*"), *self._root.glob("extractors/*/*"))
        return [directory for directory in found if DIGEST.fullmatch(directory.name)]

    def documents(self) -> set[tuple[str, str]]:
        """Tenant and document of all of which something is on the disk, in quarantine too."""
        served, quarantined = self._root.glob("tenants/*/documents/*"), self._root.glob("quarantine/*/*")
        return {(folder.parts[-3], folder.name) for folder in served} | {(folder.parts[-2], folder.name) for folder in quarantined}

    def forget_document(self, tenant: str, document: str) -> None:
        """Like `delete_document`, on this machine's disk alone."""
        super().delete_document(tenant, document)

    def stats(self) -> dict[str, float]:
        with self._counting:
            return {f"disk_{name}": value for name, value in self._counts.items() if name != "absent"} | {
                "store_misses": self._counts["absent"]
            }

    def _upload(self, source: Path, target: Path) -> frozenset[str]:
        key, manifest_sha256 = self._key(target), _manifest_sha256(source)
        missing = not self._is_up(key, manifest_sha256)
        if missing:
            files = [file for file in source.iterdir() if not file.name.startswith(_MARK)]
            for file in sorted(files, key=lambda file: file.name == _MANIFEST):
                self._objects.put(f"{key}/{manifest_sha256}/{file.name}", file)
        _touch_quietly(source / self._mark)
        return frozenset({manifest_sha256} if missing else ())

    def _is_up(self, key: str, manifest_sha256: str) -> bool:
        folder = f"{key}/{manifest_sha256}"
        return f"{folder}/{_MANIFEST}" in self._objects.list(folder)

    def _download(self, folder: str, staged: Path) -> None:
        keys = self._objects.list(folder)
        if f"{folder}/{_MANIFEST}" not in keys:
            raise FileNotFoundError(folder)
        for key in keys:
            self._objects.get(key, staged / Path(key).name)

    def _delete_objects(self, folder: str) -> None:
        """Manifests first: what is deleted halfway is no artefact."""
        for key in sorted(self._objects.list(folder), key=lambda key: not key.endswith(f"/{_MANIFEST}")):
            self._objects.delete(key)

    def _evict(self, directory: Path) -> bool:
        if not self.is_marked(directory):
            return False
        with _locked(directory, fcntl.LOCK_EX) as alone:
            if not alone:
                return False
            self.drop(directory)
        self._count(evictions=1)
        return True

    def _key(self, directory: Path) -> str:
        return directory.relative_to(self._root).as_posix()

    def _count(self, **more: float) -> None:
        with self._counting:
            for name, value in more.items():
                self._counts[name] += value


@contextlib.contextmanager
def _staged(directory: Path) -> Iterator[Path]:
    """Within the document's directory: a deletion takes it along."""
    staged = directory.with_name(f".staging-{uuid.uuid4().hex}")
    _make_staged(staged)
    try:
        yield staged
    finally:
        shutil.rmtree(staged, ignore_errors=True)
        with contextlib.suppress(OSError):
            directory.parent.rmdir()


def _make_staged(staged: Path) -> None:
    """Another fetch that failed may remove the empty directory above just then."""
    for _ in range(_TRIES):
        make_durably(staged.parent)
        with contextlib.suppress(FileNotFoundError):
            staged.mkdir(mode=0o700)
            return
    raise NotADirectoryError(errno.ENOTDIR, "the directory of a document goes as often as it is made")


@contextlib.contextmanager
def _locked(directory: Path, how: int) -> Iterator[bool]:
    """Whether the lock was to be had, which ends with its holder; a directory that is not there is not locked."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        yield False
        return
    try:
        yield _lock(descriptor, how)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, how: int) -> bool:
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except OSError:  # held by another, or a filesystem without locks
        return False
    return True


def _touch_quietly(mark: Path) -> None:
    """Create it; its directory is no more recently read for that."""
    status = mark.parent.stat()
    mark.touch(mode=0o600)
    os.utime(mark.parent, ns=(status.st_atime_ns, status.st_mtime_ns))


def _is(directory: Path, manifest_sha256: str) -> bool:
    return (directory / _MANIFEST).exists() and _manifest_sha256(directory) == manifest_sha256


def _manifest_sha256(directory: Path) -> str:
    return hashlib.sha256((directory / _MANIFEST).read_bytes()).hexdigest()


def _last_read(directory: Path) -> float:
    try:
        return directory.stat().st_mtime
    except OSError:
        return 0.0
