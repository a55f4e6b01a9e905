"""A test that does not run says so, and in continuous integration it fails."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.support.unavailable import unavailable

TESTS = Path(__file__).resolve().parents[2]
SKIPS = {"skip", "skipif", "importorskip", "xfail"}


def skips(source: str) -> set[str]:
    """The names of pytest's ways to skip that a module uses, however it got hold of them."""
    nodes = list(ast.walk(ast.parse(source)))
    attributes = {node.attr for node in nodes if isinstance(node, ast.Attribute) and _is_pytests(node.value)}
    imported = {name.name for node in nodes if isinstance(node, ast.ImportFrom) and node.module == "pytest" for name in node.names}
    return (attributes | imported) & SKIPS


def _is_pytests(value: ast.expr) -> bool:
    return ast.unparse(value) in {"pytest", "pytest.mark", "unittest"}


def test_only_one_function_skips_tests() -> None:
    found = {path.relative_to(TESTS).as_posix() for path in TESTS.rglob("*.py") if skips(path.read_text())}
    assert found == {"support/unavailable.py"}


@pytest.mark.parametrize(
    "source", ["pytest.skip('x')", "@pytest.mark.skipif(True, reason='x')\ndef f(): ...", "from pytest import importorskip"]
)
def test_every_way_to_skip_is_found(source: str) -> None:
    assert skips(source)


def test_without_ci_it_skips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(BaseException, match="no redis") as raised:
        unavailable("no redis")
    assert type(raised.value).__name__ == "Skipped"


@pytest.mark.parametrize(("ci_has_it", "outcome"), [(True, "Failed"), (False, "Skipped")])
def test_in_ci_it_fails_unless_ci_cannot_have_it(monkeypatch: pytest.MonkeyPatch, ci_has_it: bool, outcome: str) -> None:
    monkeypatch.setenv("CI", "true")
    with pytest.raises(BaseException, match="no redis") as raised:
        unavailable("no redis", ci_has_it=ci_has_it)
    assert type(raised.value).__name__ == outcome
