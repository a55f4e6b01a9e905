from __future__ import annotations

import json
from pathlib import Path

import pytest

from server.extractors import shipped as server_shipped
from tests.support.artefacts import FINGERPRINT, OTHER, write_extractor
from worker.evaluation.artefacts import extractor_of
from worker.evaluation.shipped import SHIPPED, shipped_extractor


def test_it_is_looked_for_where_the_server_has_it() -> None:
    assert SHIPPED == server_shipped.SHIPPED


def test_what_ships_is_found_by_the_fingerprint_of_its_base() -> None:
    for manifest in SHIPPED.glob("*/manifest.json"):
        directory = shipped_extractor(json.loads(manifest.read_text())["base_fingerprint"])
        assert directory is not None
        assert extractor_of(directory).composition is not None


def test_a_base_that_none_was_trained_on_has_none(tmp_path: Path) -> None:
    assert shipped_extractor(FINGERPRINT, tmp_path) is None
    write_extractor(tmp_path / "a", base_fingerprint=OTHER)
    assert shipped_extractor(FINGERPRINT, tmp_path) is None
    write_extractor(tmp_path / "b")
    assert shipped_extractor(FINGERPRINT, tmp_path) == tmp_path / "b"


def test_a_torn_manifest_is_no_reason_to_measure_without(tmp_path: Path) -> None:
    write_extractor(tmp_path / "a")
    (tmp_path / "a" / "manifest.json").write_bytes(b"{")
    with pytest.raises(ValueError, match="manifest"):
        shipped_extractor(FINGERPRINT, tmp_path)
