from __future__ import annotations

import textwrap

import pytest

from scripts.lint_tenant import VECTOR_FILE, Report, check, main


def lint(snippet: str, path: str = "server/documents/repository.py") -> Report:
    return check(textwrap.dedent(snippet), path)


GOOD = {
    "select": "select(Document).where(Document.tenant_id == tenant, Document.id == key)",
    "later in the chain": "select(Document.id).where(Document.id == key).where(Document.tenant_id == tenant).limit(1)",
    "value first": "select(Passage).where(tenant == Passage.tenant_id)",
    "filter_by": "session.query(Module).filter_by(tenant_id=tenant)",
    "update": "update(Document).where(Document.tenant_id == tenant).values(title='x')",
    "delete": "session.execute(delete(Passage).where(Passage.tenant_id == tenant))",
    "join of two guarded tables": (
        "select(Document, Module).join(Module, Module.id == Document.module_id)"
        ".where(Document.tenant_id == tenant, Module.tenant_id == Document.tenant_id)"
    ),
    "module prefix": "select(tables.Revision).where(tables.Revision.tenant_id == tenant)",
    "another table": "select(Job).where(Job.id == key)",
    "subquery with its own tenant": (
        "select(Job).where(Job.document_id.in_(select(Document.id).where(Document.tenant_id == tenant)), Job.tenant_id == tenant)"
    ),
    "a set's update": "seen.update(found)",
    "another get": "parts.get(Documents, 1)",
    "raw SQL of nothing guarded": "text('deleted_at IS NULL')",
}

BAD = {
    "select": "select(Document).where(Document.id == key)",
    "column": "select(Document.id)",
    "aggregate": "select(func.count(Module.id)).where(Module.document_id == key)",
    "update": "update(Document).where(Document.id == key).values(title='x')",
    "delete": "delete(Passage).where(Passage.revision_id == key)",
    "query": "session.query(Revision).filter(Revision.id == key)",
    "not equal": "select(Document).where(Document.tenant_id != tenant)",
    "joined table left open": "select(Document).join(Module, Module.id == Document.module_id).where(Document.tenant_id == tenant)",
    "select_from": "select(func.count()).select_from(Document)",
    "only columns compared": (
        "select(Document, Module).where(Document.tenant_id == Module.tenant_id, Module.tenant_id == Document.tenant_id)"
    ),
    "get": "session.get(Document, key)",
    "aliased": "aliased(Document)",
    "table object": "Document.__table__.select()",
    "raw SQL": "session.execute(text('SELECT * FROM documents WHERE id = :id'))",
    "tenant of the outer statement only": (
        "select(Document).where(Document.tenant_id == tenant, Document.id.in_(select(Revision.document_id).where(Revision.size > 1)))"
    ),
    "tenant of the subquery only": "select(Document).where(Document.id.in_(select(Revision.id).where(Revision.tenant_id == tenant)))",
    "module prefix": "select(tables.Document)",
}


@pytest.mark.parametrize("expression", GOOD.values(), ids=GOOD.keys())
def test_accepts(expression: str) -> None:
    assert lint(f"found = {expression}") == Report()


@pytest.mark.parametrize("expression", BAD.values(), ids=BAD.keys())
def test_refuses(expression: str) -> None:
    report = lint(f"found = {expression}")
    assert [finding.line for finding in report.errors] == [1]
    assert report.excused == []


@pytest.mark.parametrize(
    "snippet",
    [
        "found = select(Document)  # tenant-free: the sweep of expired rows",
        "# tenant-free: the sweep of expired rows\nfound = select(Document)",
        "# tenant-free: the sweep of expired rows\n# that nobody owns\nfound = select(Document)",
        "found = (\n    select(Document)\n    # tenant-free: the sweep of expired rows\n    .limit(1)\n)",
    ],
)
def test_lists_an_excused_statement_with_its_reason(snippet: str) -> None:
    report = lint(snippet)
    assert report.errors == []
    assert [finding.message for finding in report.excused] == ["the sweep of expired rows"]


def test_an_excuse_needs_a_reason() -> None:
    assert len(lint("found = select(Document)  # tenant-free:").errors) == 1


def test_an_excuse_that_excuses_nothing_is_an_error() -> None:
    assert len(lint("# tenant-free: long gone\nfound = select(Job)").errors) == 1


def test_an_excuse_reaches_no_further_than_its_statement() -> None:
    report = lint(
        """
        # tenant-free: the sweep
        first = select(Document)
        second = select(Module)
        """
    )
    assert [finding.line for finding in report.errors] == [4]


def test_an_excuse_at_a_with_block_does_not_cover_its_body() -> None:
    report = lint(
        """
        with database.write() as session:
            # tenant-free: the sweep
            session.execute(select(Document))
            session.execute(select(Module))
        """
    )
    assert [finding.line for finding in report.errors] == [5]


def test_the_vector_client_is_imported_by_the_index_alone() -> None:
    snippet = "from qdrant_client import AsyncQdrantClient\n"
    assert lint(snippet, VECTOR_FILE) == Report()
    assert len(lint(snippet, "server/documents/service.py").errors) == 1
    assert len(lint("import qdrant_client.models", "worker/tasks.py").errors) == 1


@pytest.mark.parametrize(
    "snippet",
    [
        "hits = self._client.query_points('c', query_filter=_within(tenant, document))",
        "def search(client: Client, within: models.Filter) -> None:\n    client.query_points('c', query_filter=within)",
        "def _within(tenant: str) -> models.Filter:\n    return models.Filter(must=[mine(tenant)])",
        "names.count('x')",
    ],
)
def test_accepts_vector_calls_with_a_tenant_filter(snippet: str) -> None:
    assert lint(snippet, VECTOR_FILE) == Report()


@pytest.mark.parametrize(
    "snippet",
    [
        "hits = self._client.query_points('c', query_filter=None)",
        "client.delete('c', points_selector=[1])",
        "def search(client: Client, within: Any) -> None:\n    client.query_points('c', query_filter=within)",
        "def search(client: Client) -> models.Filter:\n    return models.Filter(must=[])",
        "def _within(document: str) -> models.Filter:\n    return models.Filter(must=[mine(document)])",
    ],
)
def test_refuses_vector_calls_without_one(snippet: str) -> None:
    assert len(lint(snippet, VECTOR_FILE).errors) == 1


def test_the_source_is_clean(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0, capsys.readouterr().out
