"""No query of tenants' rows or vectors without a tenant: what types cannot hold, this holds.

    python -m scripts.lint_tenant [FILE_OR_DIRECTORY ...]        default: server worker

- A statement (`select`, `update`, `delete`, `session.query`) that names a guarded table needs `<Table>.tenant_id == …` or
  `filter_by(tenant_id=…)` for each such table in the same expression, and one of the comparisons must be with a value, not a column.
- `session.get`, `aliased`, `__table__` and raw SQL text of a guarded table cannot show a tenant and are refused.
- The vector store's client is imported by one file; its reads and deletes there carry a filter, which one function makes, for a tenant.

A cross-tenant sweep says why in a comment on or right above the statement, `# tenant-free: <why>`; every such comment is listed, and
one that excuses nothing is an error. Knows nothing of what runs: it reads one expression at a time.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

GUARDED = frozenset({"Document", "Revision", "Passage", "Module", "ExtractorDocument", "ExtractorQuestion"})
TABLES = re.compile(
    r"\b(?:from|join|update|into)\s+(?:documents|revisions|passages|modules|extractor_documents|extractor_questions)\b", re.IGNORECASE
)
STATEMENTS = frozenset({"select", "update", "delete", "query"})
UNFILTERABLE = frozenset({"get", "get_one", "aliased"})
JOINS = frozenset({"join", "outerjoin", "join_from", "outerjoin_from", "select_from", "using"})

VECTOR_CLIENT = "qdrant_client"
VECTOR_FILE = "server/retrieval/index.py"
VECTOR_CALLS = frozenset(
    {"search", "query_points", "query_points_groups", "query_batch_points", "scroll", "delete", "count", "retrieve", "facet", "set_payload"}
)
TENANT_FILTER = "_within"
"""The one function that makes filters; its first parameter is the tenant."""

EXCUSE = re.compile(r"#\s*tenant-free:\s*(?P<why>.*)$")
DEFAULT_PATHS = ("server", "worker")
SKIPPED = "/db/migrations/"

Parents = dict[ast.AST, ast.AST]
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, kw_only=True)
class Finding:
    path: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.message}"


@dataclass(kw_only=True)
class Report:
    """`excused` are the statements that said why they cross tenants."""

    errors: list[Finding] = field(default_factory=list)
    excused: list[Finding] = field(default_factory=list)


def main(arguments: list[str]) -> int:
    report = Report()
    for path in _python_files(arguments or DEFAULT_PATHS):
        found = check(path.read_text(), path.as_posix())
        report.errors += found.errors
        report.excused += found.excused
    for finding in report.excused:
        print(f"tenant-free  {finding}")
    for finding in report.errors:
        print(f"error  {finding}")
    print(f"lint_tenant: {len(report.errors)} errors, {len(report.excused)} excused")
    return 1 if report.errors else 0


def check(source: str, path: str) -> Report:
    """Check one file's text; `path` is relative to the tree and decides whether vector calls may stand here."""
    tree = ast.parse(source)
    parents = {child: parent for parent in ast.walk(tree) for child in ast.iter_child_nodes(parent)}
    comments = _comments(source)
    report, used = Report(), set[int]()
    for violation in _violations(tree, parents, path):
        line = _excuse(violation.node, parents, comments)
        if line is None:
            report.errors.append(Finding(path=path, line=violation.node.lineno, message=violation.message))
        else:
            used.add(line)
            report.excused.append(Finding(path=path, line=violation.node.lineno, message=_why(comments[line])))
    report.errors += [
        Finding(path=path, line=line, message="`tenant-free` needs a statement to excuse and a reason")
        for line, comment in comments.items()
        if EXCUSE.match(comment) and (line not in used or not _why(comment))
    ]
    report.errors.sort(key=lambda finding: finding.line)
    return report


@dataclass(frozen=True, kw_only=True)
class _Violation:
    node: ast.expr | ast.stmt
    message: str


def _violations(tree: ast.Module, parents: Parents, path: str) -> Iterator[_Violation]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            messages = [*_query_messages(node, parents), *(_vector_messages(node, parents) if path == VECTOR_FILE else ())]
            yield from (_Violation(node=node, message=message) for message in messages)
        elif isinstance(node, ast.Attribute) and node.attr == "__table__" and (table := _table(node.value)):
            yield _Violation(node=node, message=f"{table}.__table__ cannot show a tenant")
        elif isinstance(node, ast.Import | ast.ImportFrom) and path != VECTOR_FILE and _imports(node, VECTOR_CLIENT):
            yield _Violation(node=node, message=f"{VECTOR_CLIENT} is imported by {VECTOR_FILE} alone")


def _query_messages(call: ast.Call, parents: Parents) -> Iterator[str]:
    name = _called(call)
    if name in UNFILTERABLE and call.args and (table := _table(call.args[0])):
        yield f"{name}({table}) cannot show a tenant: select by id and tenant instead"
    if name == "text" and any(isinstance(part, ast.Constant) and TABLES.search(str(part.value)) for part in ast.walk(call)):
        yield "raw SQL of a guarded table cannot be checked: build the statement from its class"
    if name in STATEMENTS:
        yield from _statement_messages(call, _chain(call, parents))


def _statement_messages(call: ast.Call, chain: ast.expr) -> Iterator[str]:
    """`chain` is the whole expression select(...).where(...)… of which `call` is the start."""
    nodes = list(_own_nodes(chain, call))
    tables = _tables_read(call, nodes)
    if not tables or any(_is_filter_by_tenant(node) for node in nodes):
        return
    compared = _tenant_comparisons(nodes)
    if missing := sorted(tables - compared.keys()):
        yield f"{_called(call)} of {', '.join(missing)} without a tenant: add .where({missing[0]}.tenant_id == …)"
    elif not any(compared.values()):
        yield f"{_called(call)} of {', '.join(sorted(tables))} compares tenants with each other, never with a value"


def _own_nodes(root: ast.AST, own: ast.Call) -> Iterator[ast.AST]:
    """Every node of an expression but those of other statements nested in it, which are checked for themselves."""
    yield root
    for child in ast.iter_child_nodes(root):
        if child is own or not (isinstance(child, ast.Call) and _called(child) in STATEMENTS):
            yield from _own_nodes(child, own)


def _tables_read(call: ast.Call, nodes: Iterable[ast.AST]) -> set[str]:
    """The guarded tables that a statement reads or writes: named by its call, or joined anywhere in its chain."""
    named = [table for argument in call.args for node in _own_nodes(argument, call) if (table := _table(node))]
    joins = [node for node in nodes if isinstance(node, ast.Call) and _called(node) in JOINS]
    return {*named, *(table for join in joins for argument in join.args if (table := _table(argument)))}


def _tenant_comparisons(nodes: Iterable[ast.AST]) -> dict[str, bool]:
    """Table -> whether one of its tenant comparisons is with something that is not itself a guarded tenant column."""
    compared: dict[str, bool] = {}
    for node in nodes:
        if isinstance(node, ast.Compare) and len(node.ops) == 1 and isinstance(node.ops[0], ast.Eq):
            tables = [_tenant_column(node.left), _tenant_column(node.comparators[0])]
            for table in filter(None, tables):
                compared[table] = compared.get(table, False) or None in tables
    return compared


def _vector_messages(call: ast.Call, parents: Parents) -> Iterator[str]:
    """Filters are made in one place only, so that a parameter of that type is known to hold a tenant."""
    name = _called(call)
    around = _function_around(call, parents)
    if name == "Filter" and not (around and around.name == TENANT_FILTER and around.args.args and around.args.args[0].arg == "tenant"):
        yield f"a vector filter is made by {TENANT_FILTER}(tenant, …) alone"
    of_client = isinstance(call.func, ast.Attribute) and ast.unparse(call.func.value).endswith("client")
    if of_client and name in VECTOR_CALLS and not any(_is_tenant_filter(node, around) for node in ast.walk(call)):
        yield f"{name}() of the vector store without a filter from {TENANT_FILTER}(tenant, …)"


def _is_tenant_filter(node: ast.AST, around: Function | None) -> bool:
    if isinstance(node, ast.Call):
        return _called(node) == TENANT_FILTER
    parameters = around.args.args if around else []
    annotated = {parameter.arg for parameter in parameters if parameter.annotation and ast.unparse(parameter.annotation).endswith("Filter")}
    return isinstance(node, ast.Name) and node.id in annotated


def _function_around(node: ast.AST, parents: Parents) -> Function | None:
    while (parent := parents.get(node)) is not None and not isinstance(parent, Function):
        node = parent
    return parent


def _chain(call: ast.Call, parents: Parents) -> ast.expr:
    """The method chain that starts at `call`, to its last call."""
    top: ast.expr = call
    while isinstance(attribute := parents.get(top), ast.Attribute):
        outer = parents.get(attribute)
        if not (isinstance(outer, ast.Call) and outer.func is attribute):
            break
        top = outer
    return top


def _called(call: ast.Call) -> str | None:
    if isinstance(call.func, ast.Attribute):
        return call.func.attr
    return call.func.id if isinstance(call.func, ast.Name) else None


def _table(node: ast.AST) -> str | None:
    """`Document` or `tables.Document`."""
    name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else None
    return name if name in GUARDED else None


def _tenant_column(node: ast.expr) -> str | None:
    return _table(node.value) if isinstance(node, ast.Attribute) and node.attr == "tenant_id" else None


def _is_filter_by_tenant(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and _called(node) == "filter_by" and any(keyword.arg == "tenant_id" for keyword in node.keywords)


def _imports(node: ast.Import | ast.ImportFrom, package: str) -> bool:
    names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
    return any(name.partition(".")[0] == package for name in names)


def _comments(source: str) -> dict[int, str]:
    """Line -> its comment."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {token.start[0]: token.string for token in tokens if token.type == tokenize.COMMENT}


def _excuse(node: ast.AST, parents: Parents, comments: dict[int, str]) -> int | None:
    """The line of a `tenant-free` comment on the lines of the statement (of a block, up to the node's end) or right above it."""
    statement = node
    while not isinstance(statement, ast.stmt):
        statement = parents[statement]
    end = getattr(node if hasattr(statement, "body") else statement, "end_lineno", 0)
    first = statement.lineno
    while first - 1 in comments:
        first -= 1
    return next((line for line in range(first, end + 1) if EXCUSE.match(comments.get(line, ""))), None)


def _why(comment: str) -> str:
    found = EXCUSE.match(comment)
    return found["why"].strip() if found else ""


def _python_files(paths: Iterable[str]) -> list[Path]:
    found = {file for path in map(Path, paths) for file in (path.rglob("*.py") if path.is_dir() else [path])}
    return sorted(file for file in found if SKIPPED not in f"/{file.as_posix()}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
