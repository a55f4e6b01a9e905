"""A module, its extractor and their weights folded into one plain LoRA that PEFT and vLLM load unchanged.

    A' = [A_km; A_ke]    B' = [w_km s_km B_km | w_ke s_ke B_ke]    lora_alpha = r = r_km + r_ke

The product of the stacked matrices is the sum of the products, so this is exact for scope `all`. For scope `answer` no plain LoRA
is: where it acts depends on the prompt.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from server.engine.request import Scope
from server.errors import ModuleWrongBase, ScopeNotExportable
from server.modules.artefact import Artefact, write_lora
from server.modules.composition import Composition
from server.modules.files import flush, make_durably


def export_folded(
    km: Artefact,
    ke: Artefact | None,
    composition: Composition | None,
    directory: Path,
    base_model_name: str,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write adapter_model.safetensors and adapter_config.json into a new or empty directory.

    `composition` weighs the two (weight 1 where it names no layer, everywhere without a composition, and for a module alone); a
    layer that only one of them adapts gets zeros for the other. Folded in float64, written as `dtype`. Raises ScopeNotExportable, and
    ModuleWrongBase for artefacts of two base models.
    """
    parts = [km] if ke is None else [km, ke]
    _check(parts)
    weigh = (lambda _: (1.0, 1.0)) if ke is None or composition is None else composition.weights
    layers = sorted({layer for part in parts for layer in part.manifest.targets})
    folded = {layer: _folded(layer, parts, weigh(layer)) for layer in layers}
    rank = sum(part.manifest.rank for part in parts)
    make_durably(directory)
    write_lora(
        directory,
        a={layer: a.to(dtype) for layer, (a, _) in folded.items()},
        b={layer: b.to(dtype) for layer, (_, b) in folded.items()},
        rank=rank,
        alpha=rank,
        base_model_name=base_model_name,
    )
    flush(directory)


def _check(parts: list[Artefact]) -> None:
    if any(part.manifest.scope != Scope.ALL for part in parts):
        raise ScopeNotExportable(
            "An adapter of scope `answer` acts from the question on only, which no plain LoRA can say. "
            "Train the module with scope `all` to export it."
        )
    if len({part.manifest.base_fingerprint for part in parts}) > 1:
        raise ModuleWrongBase("The module and the extractor were trained for different base models.")


def _folded(layer: str, parts: list[Artefact], weights: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """A' [sum of ranks, in] and B' [out, sum of ranks] of one layer, float64."""
    known = next(part for part in parts if layer in part.a)
    in_features, out_features = known.a[layer].shape[1], known.b[layer].shape[0]
    rows, columns = [], []
    for part, weight in zip(parts, weights[: len(parts)], strict=True):
        rank = part.manifest.rank
        a = part.a.get(layer, torch.zeros(rank, in_features))
        b = part.b.get(layer, torch.zeros(out_features, rank))
        rows.append(a.double())
        columns.append(b.double() * (weight * part.scaling))
    return torch.cat(rows), torch.cat(columns, dim=1)
