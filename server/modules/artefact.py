"""An artefact on disk: a directory that PEFT reads, with a manifest, and for an extractor the weights of its composition.

`write_artefact` makes one, `read_artefact` proves it before any of its tensors is used. Knows nothing of the store, slots or rows.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from server.engine.request import ArtefactRef, Scope
from server.errors import ModuleCorrupt, ModuleMissing, ModuleUnsupported, ModuleWrongBase
from server.modules.canonical import canonical_json
from server.modules.composition import Composition
from server.modules.digest import composition_digest, lora_digest
from server.modules.digested_read import DigestedRead
from server.modules.files import flush, make_durably, read_regular, write_durably
from server.modules.manifest import Manifest, Unsupported, manifest_bytes, parse_manifest
from server.modules.peft_format import adapter_config, named_tensors
from server.modules.validation import (
    Shapes,
    adapter_bytes,
    check_config,
    check_manifest,
    composition_bytes,
    composition_weights,
    lora_tensors,
)

ADAPTER = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
MANIFEST = "manifest.json"
COMPOSITION = "composition.safetensors"
DAMAGED = "the module is damaged and out of service; train the document again with `retry`"
MISSING = "the module's files are not there; make its store reachable again, or train the document again with `retry`"
WRONG_BASE = "the module was trained for another base model; set that base model again, or train the document again with `retry`"
_JSON_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, kw_only=True, eq=False)
class Artefact:
    """A proven LoRA. `a`: layer -> [r, in], `b`: layer -> [out, r], on the CPU in the file's dtype; `composition` of an extractor."""

    manifest: Manifest
    a: dict[str, Tensor]
    b: dict[str, Tensor]
    composition: Composition | None = None

    @property
    def scaling(self) -> float:
        return self.manifest.alpha / self.manifest.rank

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in (*self.a.values(), *self.b.values()))


def write_artefact(
    directory: Path,
    *,
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    manifest: Manifest,
    base_model_name: str,
    composition: Composition | None = None,
) -> ArtefactRef:
    """Write an artefact into a new or empty directory, on the disk when this returns, and say what a row must record of it.

    `a`: layer -> [r, in] and `b`: layer -> [out, r], all float32 or all bfloat16. It checks nothing: whoever publishes the directory
    reads it back with `read_artefact` first. FileExistsError if there is an artefact already.
    """
    make_durably(directory)
    write_lora(directory, a=a, b=b, rank=manifest.rank, alpha=manifest.alpha, base_model_name=base_model_name)
    digest = lora_digest(a, b, manifest)
    if composition is not None:
        write_composition(directory, composition)
    described = manifest_bytes(manifest)
    write_durably(directory / MANIFEST, described)
    flush(directory)
    return ArtefactRef(
        digest=digest,
        manifest_sha256=hashlib.sha256(described).hexdigest(),
        directory=directory,
        scope=Scope(manifest.scope),
        composition=None if composition is None else composition_digest(composition, digest),
    )


def write_composition(directory: Path, composition: Composition) -> None:
    """The weights of an extractor's artefact, which has none yet."""
    write_durably(directory / COMPOSITION, _composition_file(composition))


def write_lora(directory: Path, *, a: Mapping[str, Tensor], b: Mapping[str, Tensor], rank: int, alpha: float, base_model_name: str) -> None:
    """The two files that PEFT reads."""
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in named_tensors(a, b).items()}
    config = adapter_config(rank=rank, alpha=alpha, targets=a, base_model_name=base_model_name)
    write_durably(directory / ADAPTER, safetensors.torch.save(tensors, metadata={"format": "pt"}))
    write_durably(directory / CONFIG, canonical_json(config))


def read_artefact(ref: ArtefactRef, base_fingerprint: str, shapes: Shapes, max_rank: int) -> Artefact:
    """Read an artefact whose files prove everything that `ref` and this base model expect of them.

    `shapes`: layer -> (out, in) of the base model's adapted layers. Raises ModuleCorrupt with a `reason` for damage; what is no reason
    to quarantine it: ModuleWrongBase and ModuleUnsupported for an intact artefact, ModuleMissing where there is none, OSError when the
    disk itself fails. All name the artefact's `digest`.
    """
    with _explained(ref):
        return _read(ref, base_fingerprint, shapes, max_rank)


def read_manifest(ref: ArtefactRef) -> Manifest:
    """The manifest alone, proven by its hash; nothing is known of the tensors then. Raises what `read_artefact` raises of the files."""
    with _explained(ref):
        return _read_manifest(ref)


@contextmanager
def _explained(ref: ArtefactRef) -> Iterator[None]:
    try:
        yield
    except Unsupported as error:
        raise ModuleUnsupported(f"this server cannot serve the module: {error}", digest=ref.digest) from error
    except ValueError as error:
        if not os.path.lexists(ref.directory):
            raise ModuleMissing(MISSING, reason=f"there is no {ref.directory}", digest=ref.digest) from error
        raise ModuleCorrupt(DAMAGED, reason=str(error), digest=ref.digest) from error


def _read(ref: ArtefactRef, base_fingerprint: str, shapes: Shapes, max_rank: int) -> Artefact:
    manifest = _read_manifest(ref)
    if manifest.base_fingerprint != base_fingerprint:
        reason = f"base fingerprint {manifest.base_fingerprint}, not {base_fingerprint}"
        raise ModuleWrongBase(WRONG_BASE, reason=reason, digest=ref.digest)
    check_manifest(manifest, ref, shapes, max_rank)
    check_config(read_regular(ref.directory / CONFIG, _JSON_BYTES), manifest)
    read = DigestedRead(manifest)
    adapter = read_regular(ref.directory / ADAPTER, adapter_bytes(manifest, shapes), read.see)
    a, b = lora_tensors(adapter, manifest, shapes, ref.digest, read)
    return Artefact(manifest=manifest, a=a, b=b, composition=_read_composition(ref, manifest))


def _read_manifest(ref: ArtefactRef) -> Manifest:
    if ref.directory.is_symlink():
        raise ValueError("the artefact's directory is a symbolic link")
    data = read_regular(ref.directory / MANIFEST, _JSON_BYTES)
    if hashlib.sha256(data).hexdigest() != ref.manifest_sha256:
        raise ValueError("the manifest's hash is not the expected one")
    return parse_manifest(data)


def _read_composition(ref: ArtefactRef, manifest: Manifest) -> Composition | None:
    if ref.composition is None:
        if (ref.directory / COMPOSITION).exists():
            raise ValueError("a knowledge module has no composition")
        return None
    data = read_regular(ref.directory / COMPOSITION, composition_bytes(manifest))
    return composition_weights(data, manifest, ref.digest, ref.composition)


def _composition_file(composition: Composition) -> bytes:
    weights = {name: getattr(composition, name).detach().to("cpu", torch.float32).contiguous().clone() for name in ("w_km", "w_ke")}
    layers = canonical_json(list(composition.layers)).decode()
    return safetensors.torch.save(weights, metadata={"format": "pt", "layers": layers})
