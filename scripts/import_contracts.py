"""Two contracts for import-linter that say what is allowed, where the built-in ones can only say what is not. Lazy imports count."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import cast

from grimp import ImportGraph
from importlinter.application import output
from importlinter.domain import fields
from importlinter.domain.contract import Contract, ContractCheck


class AllowOnlyContract(Contract):
    """What `source_modules` import must be the standard library or lie in `allowed_modules`.

    With `any_external = true` installed packages are free and only the project's own are checked.
    """

    source_modules = fields.SetField(subfield=fields.StringField())
    allowed_modules = fields.SetField(subfield=fields.StringField())
    any_external = fields.BooleanField(required=False, default=False)

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        own = {name.partition(".")[0] for name in graph.modules if not graph.is_module_squashed(name)}
        sources, allowed = cast(set[str], self.source_modules), cast(set[str], self.allowed_modules)
        violations = sorted(
            (importer, imported)
            for source in sources
            for importer in {source, *graph.find_descendants(source)}
            for imported in graph.find_modules_directly_imported_by(importer)
            if not self._allows(imported, allowed, own)
        )
        return ContractCheck(kept=not violations, metadata={"violations": violations})

    def render_broken_contract(self, check: ContractCheck) -> None:
        _print_violations(check)

    def _allows(self, imported: str, allowed: set[str], own: set[str]) -> bool:
        root = imported.partition(".")[0]
        if root in sys.stdlib_module_names or _lies_in(imported, allowed):
            return True
        return bool(self.any_external) and root not in own


class OnlyImportersContract(Contract):
    """Only modules that match one of the `importers` patterns (`server.cli*`) may import anything of `package`."""

    package = fields.StringField()
    importers = fields.SetField(subfield=fields.StringField())

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        package, patterns = cast(str, self.package), cast(set[str], self.importers)
        inside = {package, *graph.find_descendants(package)}
        violations = sorted(
            (importer, imported)
            for imported in inside
            for importer in graph.find_modules_that_directly_import(imported) - inside
            if not any(fnmatchcase(importer, pattern) for pattern in patterns)
        )
        return ContractCheck(kept=not violations, metadata={"violations": violations})

    def render_broken_contract(self, check: ContractCheck) -> None:
        _print_violations(check)


def _print_violations(check: ContractCheck) -> None:
    for importer, imported in check.metadata["violations"]:
        output.print_error(f"{importer} may not import {imported}")


def _lies_in(module: str, packages: Iterable[str]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)
