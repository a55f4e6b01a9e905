"""What a directory's own files say that it holds: the reference to an artefact that no row names yet."""

from __future__ import annotations

import hashlib
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError

from server.engine.request import ArtefactRef, Scope
from server.modules.artefact import ADAPTER, COMPOSITION, MANIFEST
from server.modules.composition import Composition
from server.modules.digest import composition_digest, lora_digest
from server.modules.manifest import ArtefactKind, parse_manifest
from server.modules.peft_format import tensor_names


def described(directory: Path, kind: ArtefactKind) -> ArtefactRef:
    """The reference by the digests that the files have. Raises ValueError for a directory that holds no such artefact."""
    composition = None
    try:
        data = (directory / MANIFEST).read_bytes()
        manifest = parse_manifest(data)
        if manifest.kind != kind:
            raise ValueError(f"it is a {manifest.kind.replace('_', ' ')}")
        tensors = safetensors.torch.load_file(directory / ADAPTER)
        a, b = ({layer: tensors[tensor_names(layer)[side]] for layer in manifest.targets} for side in (0, 1))
        if kind == ArtefactKind.KNOWLEDGE_EXTRACTOR:
            weights = safetensors.torch.load_file(directory / COMPOSITION)
            composition = Composition(layers=manifest.targets, w_km=weights["w_km"], w_ke=weights["w_ke"])
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ValueError(f"{directory} holds no {kind.replace('_', ' ')}: {error}") from None
    lora = lora_digest(a, b, manifest)
    return ArtefactRef(
        digest=lora,
        manifest_sha256=hashlib.sha256(data).hexdigest(),
        directory=directory,
        scope=Scope(manifest.scope),
        composition=None if composition is None else composition_digest(composition, lora),
    )
