from __future__ import annotations

import json
from pathlib import Path

import pytest

from server.modules.shipped import SHIPPED, shipped_for
from tests.support.artefacts import FINGERPRINT, OTHER, write_extractor
from worker.evaluation.artefacts import extractor_of


def test_what_ships_is_found_by_the_fingerprint_of_its_base() -> None:
    manifests = list(SHIPPED.glob("*/manifest.json"))
    assert manifests
    for manifest in manifests:
        directories = shipped_for(json.loads(manifest.read_text())["base_fingerprint"])
        assert manifest.parent in directories
        assert all(extractor_of(directory).composition is not None for directory in directories)


def test_a_base_that_none_was_trained_on_has_none(tmp_path: Path) -> None:
    assert shipped_for(FINGERPRINT, tmp_path) == []
    write_extractor(tmp_path / "a", base_fingerprint=OTHER)
    assert shipped_for(FINGERPRINT, tmp_path) == []
    write_extractor(tmp_path / "b")
    assert shipped_for(FINGERPRINT, tmp_path) == [tmp_path / "b"]


def test_a_torn_manifest_is_no_reason_to_measure_without(tmp_path: Path) -> None:
    write_extractor(tmp_path / "a")
    (tmp_path / "a" / "manifest.json").write_bytes(b"{")
    with pytest.raises(ValueError, match="manifest"):
        shipped_for(FINGERPRINT, tmp_path)
