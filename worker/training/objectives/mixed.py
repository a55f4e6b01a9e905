"""Mixed data: distilled from every kind of pair that the recipe wants."""

from __future__ import annotations

from worker.synthesis.kinds import KINDS
from worker.training.objectives.distillation import PairDistillation


class Mixed(PairDistillation):
    kinds = frozenset(kind.name for kind in KINDS)
