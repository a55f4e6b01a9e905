"""Every field of a recipe has its row in docs/training.md, with the presets' values."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

from worker.training.recipe import Recipe

TRAINING = (Path(__file__).resolve().parents[3] / "docs/training.md").read_text()
ROWS = [line.split("|")[1] for line in TRAINING.splitlines() if line.startswith("| `")]
NAMED = {"preset"}
"""What a table has as a column."""


def test_every_field_has_a_row_and_every_row_a_field() -> None:
    documented = [name for row in ROWS for name in re.findall(r"`(\w+)`", row)]
    assert len(documented) == len(set(documented))
    assert set(documented) == {field.name for field in fields(Recipe)} - NAMED
