"""The API's description: committed, complete, with stable names; and every error in it, and in the tree, is explained."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from server import openapi
from server.app import VERSION, create_app
from server.errors import JobFailure, KmserveError
from server.settings import Settings

DOCS = Path(__file__).parents[2] / "docs"
OPERATIONS = {
    "upload_document": "POST /documents",
    "list_documents": "GET /documents",
    "get_document": "GET /documents/{document_id}",
    "follow_document": "GET /documents/{document_id}/events",
    "cancel_document": "POST /documents/{document_id}/cancel",
    "retry_document": "POST /documents/{document_id}/retry",
    "train_module": "POST /documents/{document_id}/modules",
    "delete_document": "DELETE /documents/{document_id}",
    "ask": "POST /ask",
    "search": "POST /search",
    "train_extractor": "POST /extractors",
    "list_extractors": "GET /extractors",
    "get_extractor": "GET /extractors/{extractor_id}",
    "activate_extractor": "POST /extractors/{extractor_id}/activate",
    "deactivate_extractor": "POST /extractors/{extractor_id}/deactivate",
    "delete_extractor": "DELETE /extractors/{extractor_id}",
    "list_module_residency": "GET /modules/residency",
    "get_job": "GET /jobs/{job_id}",
    "cancel_job": "POST /jobs/{job_id}/cancel",
    "create_api_key": "POST /api-keys",
    "list_api_keys": "GET /api-keys",
    "revoke_api_key": "DELETE /api-keys/{key_id}",
    "live": "GET /health/live",
    "ready": "GET /health/ready",
    "metrics": "GET /metrics",
}


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return openapi.document()


def operations(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


def errors_of(root: type[KmserveError]) -> Iterator[type[KmserveError]]:
    yield root
    for child in root.__subclasses__():
        yield from errors_of(child)


def example_of(media: dict[str, Any], schema: dict[str, Any]) -> Any:
    named = media["schema"].get("$ref", "").rpartition("/")[2]
    described = schema["components"]["schemas"].get(named, media["schema"])
    return media.get("example") or media.get("examples") or described.get("example")


def test_the_committed_description_is_what_the_server_says() -> None:
    committed = (DOCS / "openapi.json").read_text()
    assert committed == openapi.text(), "run: python -m server.openapi > docs/openapi.json"


def test_the_description_does_not_depend_on_settings(monkeypatch: pytest.MonkeyPatch, schema: dict[str, Any], tmp_path: Path) -> None:
    assert create_app(Settings(data_dir=tmp_path, max_upload_bytes=1)).openapi() == schema


def test_operations_keep_their_names(schema: dict[str, Any]) -> None:
    assert {operation["operationId"]: where for where, operation in operations(schema)} == OPERATIONS


def test_every_body_has_an_example(schema: dict[str, Any]) -> None:
    for where, operation in operations(schema):
        for media_type, media in operation.get("requestBody", {}).get("content", {}).items():
            assert example_of(media, schema), f"{where}: {media_type}"
        for status, response in operation["responses"].items():
            media = response.get("content", {}).get("application/json")
            # Lists of values that have examples themselves need none.
            assert media is None or example_of(media, schema) or media["schema"]["$ref"].endswith(("Page", "List")), f"{where}: {status}"


def test_every_refusal_is_a_problem_with_known_codes(schema: dict[str, Any]) -> None:
    known = {error.code: error.status for error in errors_of(KmserveError)}
    for where, operation in operations(schema):
        refusals = {status: response for status, response in operation["responses"].items() if int(status) >= 400}
        assert refusals or where == "GET /health/live"
        for status, response in refusals.items():
            media = response["content"]["application/problem+json"]
            assert list(response["content"]) == ["application/problem+json"], where
            assert media["schema"] == {"$ref": "#/components/schemas/Problem"}
            assert {known[code] for code in media["examples"]} == {int(status)}, where


def test_every_operation_but_health_needs_a_key(schema: dict[str, Any]) -> None:
    for where, operation in operations(schema):
        assert ("security" in operation) == ("/health/" not in where), where


def test_every_error_is_explained_with_its_status() -> None:
    sections = dict(re.findall(r"^### (\w+)\n(.+)", (DOCS / "errors.md").read_text(), re.MULTILINE))
    errors = {error.code: error for error in errors_of(KmserveError)}
    assert sections.keys() == errors.keys()
    for code, text in sections.items():
        status = "" if issubclass(errors[code], JobFailure) else f"{errors[code].status}. "
        assert text.startswith(status), code


def test_the_version_is_that_of_the_distribution() -> None:
    project = tomllib.loads((DOCS.parent / "pyproject.toml").read_text())["project"]
    assert project["version"] == VERSION


def test_codes_are_of_one_class_each() -> None:
    errors = list(errors_of(KmserveError))
    assert len({error.code for error in errors}) == len(errors)


def test_every_operation_is_on_the_api_page_or_in_the_description(schema: dict[str, Any]) -> None:
    for where, operation in operations(schema):
        assert len(operation["description"]) > 15, where
