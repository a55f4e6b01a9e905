"""Documentation that a test can hold: every setting has its heading with the default it has in the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from server.settings import ENV_PREFIX, Settings

ROOT = Path(__file__).resolve().parents[3]
CONFIGURATION = (ROOT / "docs/configuration.md").read_text()
SETTINGS = {ENV_PREFIX + name.upper(): field for name, field in Settings.model_fields.items()}


def test_every_setting_has_a_heading_and_every_heading_a_setting() -> None:
    assert re.findall(rf"^### ({ENV_PREFIX}\w+)$", CONFIGURATION, re.MULTILINE) == list(SETTINGS)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_is_documented_with_its_default(name: str) -> None:
    section = CONFIGURATION.partition(f"### {name}\n")[2].partition("\n#")[0]
    default = SETTINGS[name].get_default(call_default_factory=True, validated_data={})
    assert section.startswith("Default: unset." if default is None else f"Default: `{default}`") or (
        default is None and section.startswith("Default: unset,")
    )


def test_decision_records_are_numbered_short_and_accepted() -> None:
    records = sorted((ROOT / "docs/adr").glob("*.md"))
    assert [int(record.name[:4]) for record in records] == list(range(1, len(records) + 1))
    for record in records:
        text = record.read_text()
        assert text.startswith(f"# {record.name[:4]}: ")
        assert len(text.splitlines()) <= 40
        assert [part for part in ("Status: ", "## Context", "## Decision", "## Consequences") if part not in text] == []
