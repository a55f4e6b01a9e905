from __future__ import annotations

import json
import math
from typing import Any

import pytest

from server.modules.canonical import canonical_json
from server.modules.manifest import SCHEMA_VERSION, Unsupported, manifest_bytes, parse_manifest
from tests.support.artefacts import extractor_manifest, manifest

START = {"lora": "b" * 64, "composition": "c" * 64}


def test_a_manifest_survives_its_file() -> None:
    for original in (manifest(wears="b" * 64), extractor_manifest(scope="answer"), extractor_manifest(start=START)):
        assert parse_manifest(manifest_bytes(original)) == original


def test_what_began_from_nothing_is_spelled_as_before_there_were_starts() -> None:
    assert "start" not in json.loads(manifest_bytes(extractor_manifest()))
    assert json.loads(manifest_bytes(extractor_manifest(start=START)))["start"] == START


@pytest.mark.parametrize(
    "start", [None, "a" * 64, {}, {"lora": "a" * 64}, {**START, "lora": "latest"}, {**START, "lora": 1}, {**START, "x": "a" * 64}]
)
def test_a_start_that_names_no_extractor_is_refused(start: object) -> None:
    values = json.loads(manifest_bytes(extractor_manifest())) | {"start": start}
    with pytest.raises(ValueError, match="start has"):
        parse_manifest(canonical_json(values))


def test_a_module_begins_from_nothing() -> None:
    with pytest.raises(ValueError, match="start has no valid value"):
        parse_manifest(manifest_bytes(manifest(start=START)))


def test_whole_numbers_in_place_of_floats_have_the_same_spelling() -> None:
    assert manifest_bytes(manifest(alpha=8)) == manifest_bytes(manifest(alpha=8.0))


def test_a_loss_that_is_not_finite_cannot_be_written() -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        manifest_bytes(manifest(held_out_loss_after=math.nan))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("kind", "adapter"),
        ("kind", None),
        ("kind", ["knowledge_module"]),
        ("base_fingerprint", "f" * 63),
        ("base_fingerprint", "F" * 64),
        ("base_fingerprint", None),
        ("rank", 0),
        ("rank", -4),
        ("rank", 4.0),
        ("rank", True),
        ("rank", "4"),
        ("alpha", 0.0),
        ("alpha", -1.0),
        ("alpha", True),
        ("alpha", "8"),
        ("alpha", None),
        ("targets", []),
        ("targets", "model.layers.0"),
        ("targets", ["b", "a"]),
        ("targets", ["a", "a"]),
        ("targets", ["", "a"]),
        ("targets", ["a", 1]),
        ("targets", [["a"]]),
        ("scope", "everything"),
        ("scope", None),
        ("wears", ""),
        ("wears", "latest"),
        ("wears", 0),
        ("document_revision", 1),
        ("objective", None),
        ("recipe", []),
        ("data", None),
        ("seed", "7"),
        ("seed", False),
        ("held_out_loss_before", "low"),
        ("held_out_loss_after", None),
        ("gate", True),
        ("versions", "2.13"),
        ("created", 0),
        ("schema_version", 0),
        ("schema_version", SCHEMA_VERSION + 1),
        ("schema_version", str(SCHEMA_VERSION)),
        ("schema_version", True),
        ("schema_version", 1.0),
    ],
)
def test_a_field_of_a_wrong_type_or_value_is_named(name: str, value: Any) -> None:
    values = json.loads(manifest_bytes(manifest())) | {name: value}
    with pytest.raises(ValueError, match=name.replace("_", "[_ ]")):
        parse_manifest(canonical_json(values))


@pytest.mark.parametrize("name", sorted(json.loads(manifest_bytes(manifest()))))
def test_every_field_is_required(name: str) -> None:
    values = json.loads(manifest_bytes(manifest()))
    del values[name]
    with pytest.raises(ValueError, match=name.replace("_", "[_ ]")):
        parse_manifest(canonical_json(values))


@pytest.mark.parametrize(("version", "kind"), [(0, Unsupported), (SCHEMA_VERSION + 1, Unsupported), (True, ValueError), ("1", ValueError)])
def test_another_schema_version_is_told_apart_from_none(version: object, kind: type[ValueError]) -> None:
    values = json.loads(manifest_bytes(manifest())) | {"schema_version": version, "new": 1}
    with pytest.raises(ValueError) as caught:  # noqa: PT011  (the type is what is tested)
        parse_manifest(canonical_json(values))
    assert type(caught.value) is kind


def test_an_unknown_field_is_refused() -> None:
    values = json.loads(manifest_bytes(manifest())) | {"auto_map": "code.py"}
    with pytest.raises(ValueError, match="auto_map"):
        parse_manifest(canonical_json(values))


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'"text"', b"[" * 100_000])
def test_what_is_no_json_object_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="manifest is not"):
        parse_manifest(data)


def test_another_spelling_of_the_same_values_is_refused() -> None:
    spaced = json.dumps(json.loads(manifest_bytes(manifest()))).encode()
    with pytest.raises(ValueError, match="canonically"):
        parse_manifest(spaced)
