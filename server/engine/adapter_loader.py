"""An artefact on disk to an adapter in host memory: proven by `read_artefact`, then laid out as the slots want it."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from server.engine.adapter_bank import Product
from server.engine.base_model import BaseModel
from server.engine.host_cache import AdapterKey, HostAdapter, Load
from server.engine.request import ArtefactRef, Scope
from server.engine.spare_memory import SpareMemory
from server.errors import KmserveError, ModuleUnreadable, ModuleUnsupported, StorageFull
from server.modules.artefact import Artefact, read_artefact

Read = Callable[[ArtefactRef, str, Mapping[str, tuple[int, int]], int], Artefact]


def memory_of(base: BaseModel) -> SpareMemory:
    """For the adapters of a model."""
    return SpareMemory(base.dtype, locked=base.device.type == "cuda")


def loader(
    base: BaseModel, layers: Mapping[str, nn.Linear], max_rank: int, read: Read = read_artefact, memory: SpareMemory | None = None
) -> Load:
    """The `load` of a host cache, into `memory`. Raises what `read` raises (an ArtefactRefused); where the disk fails, ModuleUnreadable
    or StorageFull."""
    room = memory_of(base) if memory is None else memory
    shapes = {name: (linear.out_features, linear.in_features) for name, linear in layers.items()}

    def load(ref: ArtefactRef) -> HostAdapter:
        try:
            artefact = read(ref, base.fingerprint, shapes, max_rank)
        except OSError as error:
            raise _explained(ref, error) from error
        return _laid_out(ref, artefact, tuple(shapes), base, room)

    return load


def _explained(ref: ArtefactRef, error: OSError) -> KmserveError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageFull("the server's storage is full; make room and ask again")
    reason = os.strerror(error.errno) if error.errno else type(error).__name__
    return ModuleUnreadable("the module's files cannot be read; the server's log says why", reason=reason, digest=ref.digest)


def _laid_out(ref: ArtefactRef, artefact: Artefact, names: Sequence[str], base: BaseModel, memory: SpareMemory) -> HostAdapter:
    tensors = _products(artefact, names, base, ref.digest, memory)
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


def _products(artefact: Artefact, names: Sequence[str], base: BaseModel, digest: str, room: SpareMemory) -> tuple[Product | None, ...]:
    """In the model's dtype, in one piece of memory. Layers of one kind are converted together: each of hundreds of small steps would give
    the interpreter's lock away and wait for it."""
    alike: dict[tuple[str, torch.Size, torch.Size], list[str]] = {}
    for name in filter(artefact.a.__contains__, names):
        alike.setdefault((name.rpartition(".")[2], artefact.a[name].shape, artefact.b[name].shape), []).append(name)
    memory = room.take(artefact.nbytes // next(iter(artefact.a.values())).itemsize)
    found: dict[str, Product] = {}
    end = 0
    for kind in alike.values():
        layers = sorted(kind, key=lambda name: artefact.a[name].storage_offset())
        sides = []
        for together in (
            _together([artefact.a[name] for name in layers]),
            _together([artefact.b[name] for name in layers]).transpose(1, 2),
        ):
            start, end = end, end + together.numel()
            sides.append(memory[start:end].view(together.shape).copy_(together).unbind())
        found |= zip(layers, zip(*sides, strict=True), strict=True)
    narrower = torch.finfo(base.dtype).max < torch.finfo(next(iter(artefact.a.values())).dtype).max
    # What is proven to be finite stays so in a dtype that reaches as far.
    if narrower and not bool(torch.stack(list(torch.aminmax(memory[:end]))).isfinite().all()):  # it would reach the requests beside it
        detail = f"this server cannot serve the module: it has numbers that are too large for {base.dtype}"
        raise ModuleUnsupported(detail, digest=digest)
    return tuple(found.get(name) for name in names)


def _together(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors of one shape as one: as they lie where they are evenly spaced in one piece of memory, like those of a file, else copied."""
    first = tensors[0]
    steps = {later.storage_offset() - earlier.storage_offset() for earlier, later in pairwise(tensors)}
    if len(steps) == 1 and min(steps) > 0 and len({(tensor.untyped_storage().data_ptr(), tensor.stride()) for tensor in tensors}) == 1:
        return first.as_strided((len(tensors), *first.shape), (steps.pop(), *first.stride()))
    return torch.stack(list(tensors))
