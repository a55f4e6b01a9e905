"""Mixed data: distilled from summaries, question-answer pairs and recitations."""

from __future__ import annotations

from worker.training.objectives.distillation import PairDistillation


class Mixed(PairDistillation):
    kinds = frozenset({"summary", "question", "recitation"})
