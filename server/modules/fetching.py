"""How the engine reads artefacts from a store: from its disk, and what is not there from below it. Knows no adapters or slots."""

from __future__ import annotations

from dataclasses import replace

from server.engine.adapter_loader import Read
from server.engine.request import ArtefactRef
from server.errors import ModuleMissing, ModuleUnreadable, ObjectStoreUnavailable
from server.modules.artefact import MISSING, Artefact, read_artefact
from server.modules.cached_store import CachedStore
from server.modules.store import ModuleStore
from server.modules.validation import Shapes


def disk_reader(store: ModuleStore) -> Read:
    """`read_artefact` from the store's directory."""

    def read(ref: ArtefactRef, base_fingerprint: str, shapes: Shapes, max_rank: int) -> Artefact:
        with store.held(ref.directory):
            return read_artefact(ref, base_fingerprint, shapes, max_rank)

    return read


def below_reader(store: CachedStore) -> Read:
    """Like `read_artefact`, from the object store; what is proven takes its place on the disk.

    Raises what `read_artefact` raises: ModuleMissing where the object store has no such artefact, ModuleUnreadable where it cannot be
    used, ModuleCorrupt where its bytes are not what `ref` expects, OSError.
    """

    def read(ref: ArtefactRef, base_fingerprint: str, shapes: Shapes, max_rank: int) -> Artefact:
        try:
            with store.fetched(ref.directory, ref.manifest_sha256) as staged:
                artefact = read_artefact(replace(ref, directory=staged), base_fingerprint, shapes, max_rank)
                store.place(staged, ref.directory)
                return artefact
        except FileNotFoundError as error:
            raise ModuleMissing(MISSING, reason="neither the disk nor the object store has it", digest=ref.digest) from error
        except ObjectStoreUnavailable as error:
            detail = "the module cannot be fetched from the object store; try again"
            raise ModuleUnreadable(detail, reason=error.detail, digest=ref.digest) from error

    return read
