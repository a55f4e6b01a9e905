"""Synthetic DCD (Caccia et al. 2025, eq. 4): distilled from summaries of chunks that the base model wrote."""

from __future__ import annotations

from worker.training.objectives.distillation import PairDistillation


class SDCD(PairDistillation):
    kinds = frozenset({"summary"})
