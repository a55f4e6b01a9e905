"""An import-linter contract that names what a package may import, where the built-in ones can only name what it may not.

Direct imports of each module in `source_modules`, lazy ones included, must be the standard library or lie in `allowed_modules`. With
`any_external = true` installed packages are free and only the project's own are checked.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import cast

from grimp import ImportGraph
from importlinter.application import output
from importlinter.domain import fields
from importlinter.domain.contract import Contract, ContractCheck


class AllowOnlyContract(Contract):
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
        for importer, imported in check.metadata["violations"]:
            output.print_error(f"{importer} may not import {imported}")

    def _allows(self, imported: str, allowed: set[str], own: set[str]) -> bool:
        root = imported.partition(".")[0]
        if root in sys.stdlib_module_names or _lies_in(imported, allowed):
            return True
        return bool(self.any_external) and root not in own


def _lies_in(module: str, packages: Iterable[str]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)
