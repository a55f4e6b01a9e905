"""The API and the worker as processes over chosen backends, started one after the other: `kmserve up` taken apart.

with running(tmp_path, environment(tmp_path / "data")) as house:
    house.client.upload(...)          the API is ready
    house.start_worker()
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kmserve_client.client import Client
from sqlalchemy import func, select, update

from server.cli_stack import Stack
from server.cli_up import wait_ready
from server.db.session import SyncDatabase
from server.db.tables import Base, Document, Job, JobKind, Module, Passage, Revision
from server.settings import Settings
from tests.support.kmserve_up import plain_environment
from tests.support.servers import free_port

_OF_DOCUMENTS: tuple[type[Base], ...] = (Document, Revision, Passage, Module, Job)
_TAIL = 4000


@dataclass(frozen=True, kw_only=True)
class House:
    """`client` has the admin key."""

    stack: Stack
    client: Client
    database: SyncDatabase

    @property
    def root(self) -> Path:
        return self.stack.settings.root

    def start_worker(self) -> None:
        self.stack.start_worker()

    def set_recipe(self, document_id: str, recipe: Mapping[str, Any]) -> None:
        """For the queued training. The API has no request for it yet, so this writes where one would."""
        with self.database.write() as session:
            mine = (Job.document_id == document_id, Job.tenant_id == "default", Job.kind == JobKind.TRAIN)
            job = session.scalars(select(Job).where(*mine)).one()
            session.execute(update(Job).where(*mine).values(params={**job.params, "recipe": dict(recipe)}))

    def rows(self) -> dict[str, int]:
        """How many there are of everything that a document has."""
        with self.database.read() as session:
            return {table.__tablename__: session.scalar(select(func.count()).select_from(table)) or 0 for table in _OF_DOCUMENTS}

    def files_with(self, words: str) -> list[Path]:
        """Files of the data directory that hold these words, or have them in their path; the base model is not looked through."""
        found = (path for path in self.root.rglob("*") if self.root / "models" not in path.parents)
        return [path for path in found if words in path.name or (path.is_file() and words.encode() in path.read_bytes())]


@contextmanager
def running(folder: Path, **chosen: Any) -> Iterator[House]:
    """With the API ready, over these settings and the defaults; everything is stopped at the end, and a failure tells both logs."""
    settings = Settings(data_dir=folder / "data", port=free_port(), **chosen)
    given = {"data_dir": settings.data_dir, "port": settings.port, **chosen}
    environ = plain_environment() | {f"KMSERVE_{name.upper()}": str(value) for name, value in given.items()}
    with Stack(settings, environ, log_dir=folder) as stack:
        try:
            stack.start_api()
            with Client(stack.url) as client:
                wait_ready(stack, client.ready)
            database = SyncDatabase(settings.sql_url)
            with Client(stack.url, stack.key_file.read_text().strip(), timeout=120.0) as client:
                yield House(stack=stack, client=client, database=database)
            database.close()
        except Exception as error:
            for log in sorted(folder.glob("*.log")):
                error.add_note(f"--- {log.name}\n{log.read_text(errors='replace')[-_TAIL:]}")
            raise
