"""Where published artefacts lie: one directory per digest, below its tenant and document, whole or absent.

    <root>/tenants/<tenant>/documents/<document>/<digest>/     modules
    <root>/extractors/<owner>/<digest>/                        extractors
    <root>/quarantine/<tenant>/<document>/<digest>.<n>/        what failed its proof: `artefact` and `reason.txt`

Two tenants never share a directory, even for equal bytes. Knows nothing of what an artefact holds or of database rows.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import time
import uuid
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from server.modules.files import flush, flush_tree, make_durably, write_durably
from server.modules.manifest import DIGEST

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")
_DOOMED = ".deleted-"
_STAGED = ".staging-"
_ABANDONED_SECONDS = 24 * 3600.0


class ModuleStore:
    def __init__(self, root: Path) -> None:
        self._root = root

    def path(self, tenant: str, document: str, digest: str) -> Path:
        """Where a module lies, whether it is there or not. ValueError for names that could leave the store."""
        return self._document(tenant, document) / _digest(digest)

    def extractor_path(self, owner: str, digest: str) -> Path:
        """Where an extractor lies. One lora may have several compositions: the digest is the composition's, which covers both."""
        return self._root / "extractors" / _name(owner) / _digest(digest)

    def staging(self, tenant: str, document: str) -> Path:
        """A new empty directory on the store's filesystem, for `publish`. It goes with the document if it is never published."""
        return _staging(self._document(tenant, document))

    def staging_extractor(self, owner: str) -> Path:
        """Like `staging`; what a crash left of earlier ones goes."""
        folder = self._root / "extractors" / _name(owner)
        clear_abandoned(folder)
        return _staging(folder)

    def publish(self, staged: Path, tenant: str, document: str, digest: str) -> Path:
        """Move a staged artefact to its place, all or nothing, on the disk when this returns.

        An artefact already there under this digest is kept, with its own manifest, and the staged one dropped: a row must describe
        what lies in the returned directory. FileNotFoundError if the document was deleted meanwhile, with what was staged.
        """
        return _publish(staged, self.path(tenant, document, digest))

    def publish_extractor(self, staged: Path, owner: str, digest: str) -> Path:
        """Like `publish`."""
        return _publish(staged, self.extractor_path(owner, digest))

    def upload(self, staged: Path, target: Path) -> frozenset[str]:
        """Bring a staged artefact to where other machines find it, before it is published at `target`: nothing to do, where the directory
        is all there is. The hashes of the manifests that were not there before. Raises ObjectStoreUnavailable."""
        return frozenset()

    def withdraw(self, target: Path, manifest_sha256: str) -> None:
        """Undo `upload` for an artefact that no row names."""

    def kept(self, directory: Path, manifest_sha256: str) -> AbstractContextManager[None]:
        """Have an artefact on the disk for another process to read meanwhile, if it is anywhere. Raises ObjectStoreUnavailable, OSError."""
        return nullcontext()

    def held(self, directory: Path) -> AbstractContextManager[None]:
        """Around reading an artefact: nobody takes it from the disk to make room meanwhile."""
        return nullcontext()

    def has(self, directory: Path, manifest_sha256: str) -> bool:
        """Whether there is such an artefact. Raises ObjectStoreUnavailable where that cannot be known."""
        return directory.exists()

    def below(self, tenant: str) -> frozenset[Path]:
        """Places of the tenant's modules that can be fetched to the disk from below it. Raises ObjectStoreUnavailable."""
        return frozenset()

    def trim(self) -> None:
        """Make room on a disk that is a cache."""

    def drop(self, directory: Path) -> None:
        """Remove a module or extractor from the disk alone."""
        _remove(directory)

    def delete(self, tenant: str, document: str, digest: str) -> None:
        """Remove a module; nothing there is no error. A reader sees all of it or nothing at any time."""
        _remove(self.path(tenant, document, digest))

    def delete_extractor(self, owner: str, digest: str, manifest_sha256: str) -> None:
        """Like `delete`; below the disk, what lies there with another manifest stays."""
        _remove(self.extractor_path(owner, digest))

    def delete_document(self, tenant: str, document: str) -> None:
        """Remove all that is kept of a document: its modules, staged ones and quarantined ones."""
        _remove(self._document(tenant, document))
        _remove(self._quarantine(tenant, document))

    def quarantine(self, tenant: str, document: str, digest: str, reason: str) -> Path | None:
        """Move a module out of service, with the reason beside it. None if it is no longer there."""
        damaged = self.path(tenant, document, digest)
        cell = self._quarantine(tenant, document) / f"{digest}.{uuid.uuid4().hex}"
        make_durably(cell)
        try:
            damaged.rename(cell / "artefact")
        except FileNotFoundError:
            cell.rmdir()
            return None
        write_durably(cell / "reason.txt", f"{reason}\n".encode(errors="backslashreplace"))
        flush(cell)
        flush(damaged.parent)
        return cell

    def size(self) -> int:
        """Bytes of all that is published, of all tenants: it looks at every file."""
        return sum(size_of(self._root / published) for published in ("tenants", "extractors"))

    def stats(self) -> dict[str, float]:
        """Counts of a disk that is a cache of something below it."""
        return {}

    def _document(self, tenant: str, document: str) -> Path:
        return self._root / "tenants" / _name(tenant) / "documents" / _name(document)

    def _quarantine(self, tenant: str, document: str) -> Path:
        return self._root / "quarantine" / _name(tenant) / _name(document)


def _staging(folder: Path) -> Path:
    make_durably(folder)
    staged = folder / f"{_STAGED}{uuid.uuid4().hex}"
    staged.mkdir(mode=0o700)
    return staged


def clear_abandoned(folder: Path) -> None:
    """Remove what was staged in it long ago and never published."""
    for staged in folder.glob(f"{_STAGED}*"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - staged.stat().st_mtime > _ABANDONED_SECONDS:
                _remove_tree(staged)


def _publish(staged: Path, target: Path) -> Path:
    make_durably(target.parent)
    flush_tree(staged)
    try:
        staged.rename(target)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
        shutil.rmtree(staged)
    flush(target.parent)
    return target


def size_of(directory: Path) -> int:
    """Bytes of all files below it."""
    return sum(_size(Path(folder, name)) for folder, _, names in os.walk(directory) for name in names)


def _size(file: Path) -> int:
    """0 for one that has just been deleted, or that the disk does not show."""
    try:
        return file.lstat().st_size
    except OSError:
        return 0


def _name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise ValueError("tenants, documents and owners of artefacts have plain names")
    return text


def _digest(text: str) -> str:
    if not DIGEST.fullmatch(text):
        raise ValueError("a digest is 64 lowercase hexadecimal digits")
    return text


def _remove(directory: Path) -> None:
    """Rename first, so that nobody opens half of it; then delete that and what an interrupted removal left beside it."""
    with contextlib.suppress(FileNotFoundError):
        directory.rename(directory.with_name(f"{_DOOMED}{uuid.uuid4().hex}"))
        flush(directory.parent)
    for doomed in list(directory.parent.glob(f"{_DOOMED}*")):
        with contextlib.suppress(FileNotFoundError):
            _remove_tree(doomed)


def _remove_tree(path: Path) -> None:
    """A link is removed, never followed."""
    if path.is_symlink():
        path.unlink()
    else:
        shutil.rmtree(path)
