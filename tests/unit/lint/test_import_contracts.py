from __future__ import annotations

from grimp import ImportGraph
from importlinter.domain.contract import ContractCheck

from scripts.import_contracts import AllowOnlyContract, OnlyImportersContract


def graph(*imports: tuple[str, str]) -> ImportGraph:
    made = ImportGraph()
    for module in ("server", "server.engine", "server.engine.runner", "server.errors", "server.db", "worker"):
        made.add_module(module)
    for external in ("torch", "sqlalchemy", "json"):
        made.add_module(external, is_squashed=True)
    for importer, imported in imports:
        made.add_import(importer=importer, imported=imported)
    return made


def check(*imports: tuple[str, str], **options: str) -> ContractCheck:
    allowed = {"source_modules": ["server.engine"], "allowed_modules": ["server.engine", "server.errors", "torch"]}
    return AllowOnlyContract("engine", {}, {**allowed, **options}).check(graph(*imports), verbose=False)


def test_keeps_to_the_allowed_and_the_standard_library() -> None:
    assert check(
        ("server.engine.runner", "torch"),
        ("server.engine.runner", "server.engine"),
        ("server.engine.runner", "server.errors"),
        ("server.engine.runner", "json"),
        ("server.db", "sqlalchemy"),
    ).kept


def test_names_what_is_not_allowed() -> None:
    broken = check(("server.engine.runner", "sqlalchemy"), ("server.engine", "server.db"))
    assert not broken.kept
    assert broken.metadata["violations"] == [("server.engine", "server.db"), ("server.engine.runner", "sqlalchemy")]


def test_a_name_that_only_begins_alike_is_not_allowed() -> None:
    made = graph()
    made.add_module("server.errors_of_others")
    made.add_import(importer="server.engine", imported="server.errors_of_others")
    contract = AllowOnlyContract("engine", {}, {"source_modules": ["server.engine"], "allowed_modules": ["server.errors"]})
    assert not contract.check(made, verbose=False).kept


def test_any_external_frees_packages_but_not_our_own() -> None:
    assert check(("server.engine", "sqlalchemy"), any_external="true").kept
    assert not check(("server.engine", "server.db"), any_external="true").kept


def test_only_the_named_importers_may_use_a_package() -> None:
    made = graph(("server.engine.runner", "worker"), ("server.errors", "worker"))
    options = {"package": "worker", "importers": ["server.err*"]}
    broken = OnlyImportersContract("worker", {}, options).check(made, verbose=False)
    assert broken.metadata["violations"] == [("server.engine.runner", "worker")]
    assert OnlyImportersContract("worker", {}, {**options, "importers": ["server.err*", "server.engine.*"]}).check(made, verbose=False).kept
