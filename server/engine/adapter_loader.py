"""An artefact on disk to an adapter in host memory: proven by `read_artefact`, then laid out as the slots want it."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn

from server.engine.adapter_bank import Product
from server.engine.base_model import BaseModel
from server.engine.host_cache import AdapterKey, HostAdapter, Load
from server.engine.request import ArtefactRef, Scope
from server.errors import KmserveError, ModuleUnreadable, StorageFull
from server.modules.artefact import Artefact, read_artefact

logger = logging.getLogger(__name__)

Read = Callable[[ArtefactRef, str, Mapping[str, tuple[int, int]], int], Artefact]


def loader(base: BaseModel, layers: Mapping[str, nn.Linear], max_rank: int, read: Read = read_artefact) -> Load:
    """The `load` of a host cache: raises what `read` raises (an ArtefactRefused); where the disk fails, ModuleUnreadable or StorageFull."""
    shapes = {name: (linear.out_features, linear.in_features) for name, linear in layers.items()}

    def load(ref: ArtefactRef) -> HostAdapter:
        try:
            artefact = read(ref, base.fingerprint, shapes, max_rank)
        except OSError as error:
            raise _explained(ref, error) from error
        return _laid_out(ref, artefact, tuple(shapes), base)

    return load


def _explained(ref: ArtefactRef, error: OSError) -> KmserveError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageFull("the server's storage is full; make room and ask again")
    reason = os.strerror(error.errno) if error.errno else type(error).__name__
    return ModuleUnreadable("the module's files cannot be read; the server's log says why", reason=reason, digest=ref.digest)


def _laid_out(ref: ArtefactRef, artefact: Artefact, names: Sequence[str], base: BaseModel) -> HostAdapter:
    tensors = tuple(_pair(artefact, name, base) for name in names)
    weights = [artefact.composition.weights(name) for name in names] if artefact.composition else None
    return HostAdapter(
        key=AdapterKey.of(ref),
        scope=Scope(artefact.manifest.scope),
        scaling=artefact.scaling,
        tensors=tensors,
        w_km=tuple(w_km for w_km, _ in weights) if weights else None,
        w_ke=tuple(w_ke for _, w_ke in weights) if weights else None,
        nbytes=sum(a.nbytes + b.nbytes for a, b in filter(None, tensors)),
    )


def _pair(artefact: Artefact, name: str, base: BaseModel) -> Product | None:
    if name not in artefact.a:
        return None
    return _host(artefact.a[name], base), _host(artefact.b[name].T, base)


def _host(tensor: Tensor, base: BaseModel) -> Tensor:
    """In the model's dtype, page-locked where it will cross to a GPU."""
    converted = tensor.to(base.dtype).contiguous()
    return _pinned(converted) if base.device.type == "cuda" else converted


def _pinned(tensor: Tensor) -> Tensor:
    """As it is where the system locks no more pages: its copies are slower then, and no request fails for that."""
    try:
        return tensor.pin_memory()
    except RuntimeError:
        logger.warning("no page-locked memory for a module; copying it to the GPU will take longer", exc_info=True)
        return tensor
