"""Engine and artefact import where only torch, transformers, safetensors and jinja2 are installed; training, where PEFT is too."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BARE = "torch transformers safetensors jinja2"

# Runs in its own interpreter: the path finder answers only for the closure of the given distributions, so that everything else is truly
# absent, to `import` and to `find_spec` alike.
PROGRAM = """
import importlib, re, sys
from importlib import metadata
from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder
from pathlib import Path

root, rounds = Path(sys.argv[1]), [pair.split(":") for pair in sys.argv[2:]]

def closure(*names):
    seen, waiting = set(), list(names)
    while waiting:
        name = re.sub("[-_.]+", "-", waiting.pop()).lower()
        if name in seen:
            continue
        seen.add(name)
        try:
            lines = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        waiting += [re.split("[^A-Za-z0-9._-]", line)[0] for line in lines if "extra ==" not in line]
    return seen

owners_of = metadata.packages_distributions()

def modules_of(distributions):
    return {
        module for module, owners in owners_of.items()
        if any(re.sub("[-_.]+", "-", owner).lower() in distributions for owner in owners)
    }

our_parents = {"server", "worker"}
ours, third_party = {"server.errors"}, set()

class OnlyThese:
    find_distributions = PathFinder.find_distributions

    @staticmethod
    def find_spec(name, path=None, target=None):
        top = name.partition(".")[0]
        if top in our_parents:
            known = name in our_parents or any(name == own or name.startswith(own + ".") for own in ours)
        else:
            known = top in third_party | sys.stdlib_module_names or top.startswith("_sysconfigdata")
        return PathFinder.find_spec(name, path, target) if known else None

sys.path.insert(0, str(root))
sys.meta_path[:] = [BuiltinImporter, FrozenImporter, OnlyThese]
for name in [name for name in sys.modules if name.partition(".")[0] in our_parents]:
    del sys.modules[name]

count = 0
for distributions, packages in rounds:
    third_party |= modules_of(closure(*distributions.split()))
    ours |= set(packages.split())
    for package in packages.split():
        for file in sorted((root / package.replace(".", "/")).rglob("*.py")):
            importlib.import_module(".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__"))
            count += 1
for forbidden in ("fastapi", "sqlalchemy", "sentence_transformers", "server.settings", "worker.celery_app"):
    assert importlib.util.find_spec(forbidden) is None and forbidden not in sys.modules, forbidden
print(f"imported {count} modules")
"""


def import_all(*rounds: str) -> int:
    """Each round is `distributions:packages`; it adds to what is there, then imports every module of its packages."""
    command = [sys.executable, "-c", PROGRAM, str(ROOT), *rounds]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[1])


def test_engine_modules_and_training_import_with_everything_else_absent() -> None:
    assert import_all(f"{BARE}:server.engine server.modules worker.synthesis worker.training") > 30


def test_the_check_notices_what_is_not_bare() -> None:
    with pytest.raises(AssertionError, match="No module named 'sqlalchemy'"):
        import_all(f"{BARE}:server.db")
