"""How a knowledge module and a knowledge extractor act together: per-layer weights, and which extractor a module is served with.

    y = W x + w_km[l] * s_km * B_km A_km x + w_ke[l] * s_ke * B_ke A_ke x

A layer the composition does not name, and a module without an extractor, has weight 1. Pure values: no files, no database.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from server.errors import ExtractorUnavailable


@dataclass(frozen=True, kw_only=True, eq=False)
class Composition:
    """`w_km` and `w_ke` are float32 vectors [L] in the order of `layers`, which are sorted and unique."""

    layers: tuple[str, ...]
    w_km: Tensor
    w_ke: Tensor

    @cached_property
    def _pairs(self) -> dict[str, tuple[float, float]]:
        return dict(zip(self.layers, zip(self.w_km.tolist(), self.w_ke.tolist(), strict=True), strict=True))

    def weights(self, layer: str) -> tuple[float, float]:
        """(w_km, w_ke) of a layer; (1, 1) for one that the composition does not name."""
        return self._pairs.get(layer, (1.0, 1.0))


def ones(layers: Iterable[str]) -> Composition:
    """The composition with every weight 1."""
    names = tuple(sorted(layers))
    return Composition(layers=names, w_km=torch.ones(len(names)), w_ke=torch.ones(len(names)))


@dataclass(frozen=True, kw_only=True)
class ExtractorVersion:
    """One servable version of an extractor: the digest of its tensors and the digest of the weights over them."""

    lora: str
    composition: str


def extractor_for(wears: str | None, active: ExtractorVersion | None, versions: Sequence[ExtractorVersion] = ()) -> ExtractorVersion | None:
    """The extractor that a module is served with; `wears` is the lora digest from its manifest, `versions` is oldest first.

    A module that wears nothing goes with the active extractor, or with none if none is active. A module distilled while teacher
    and student wore a lora is right only over that lora: it goes with the active composition if that is over this lora, else with
    the lora's own newest composition. If the lora has none (its extractor was deleted), serving the module with another extractor
    or alone would answer wrongly without a word, so that raises ExtractorUnavailable.
    """
    if wears is None or (active is not None and active.lora == wears):
        return active
    own = [version for version in versions if version.lora == wears]
    if not own:
        raise ExtractorUnavailable(
            "the extractor this module was trained with is not available; restore it, or ask with `fallback: retrieval`"
        )
    return own[-1]
