"""The objectives by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from worker.training.objectives.ddcd import DDCD
from worker.training.objectives.lm import LM
from worker.training.objectives.mixed import Mixed
from worker.training.objectives.objective import Objective
from worker.training.objectives.pit import PIT
from worker.training.objectives.sdcd import SDCD
from worker.training.recipe import ObjectiveName, Recipe

OBJECTIVES: Final[Mapping[ObjectiveName, Objective]] = {"lm": LM(), "pit": PIT(), "ddcd": DDCD(), "sdcd": SDCD(), "mixed": Mixed()}


def objective_of(recipe: Recipe) -> Objective:
    return OBJECTIVES[recipe.objective]
