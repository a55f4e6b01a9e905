"""A data directory with a migrated database, documents whose text scripts the fake trainer, and a worker over them."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from sqlalchemy import insert, select

from server.db import extractors, jobs, modules
from server.db.blobs import BlobStore
from server.db.session import SyncDatabase
from server.db.tables import Document, Extractor, Job, Module, Passage, Revision
from server.modules.manifest import ArtefactKind, Manifest, manifest_bytes
from server.modules.store import ModuleStore
from server.settings import Settings
from tests.support.databases import migrated
from tests.support.rows import Uploaded, document_row, expire_lease, extractor_training, job_row, skip_wait, training, upload
from worker.supervisor import Supervisor

FAKE_TRAINER: Final = (sys.executable, "-I", str(Path(__file__).with_name("fake_trainer.py")))
PATIENCE: Final = 60.0

Step = dict[str, Any]


def eventually(condition: Callable[[], object], seconds: float = PATIENCE) -> None:
    """Wait until the condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Whether the process runs; one that ended and was not waited for does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def stage(name: str, done: int = 1, total: int = 2) -> Step:
    return {"say": {"event": "progress", "stage": name, "done": done, "total": total, "unit": "steps", "eta_seconds": 3.0}}


@dataclass(frozen=True, kw_only=True)
class FakeArtefact:
    """A directory with a true manifest; its tensors are noise, which nobody in the worker's parent process looks at."""

    directory: Path
    digest: str
    manifest_sha256: str
    composition: str | None = None

    def step(self, **changes: Any) -> Step:
        event = {"event": "result", "artefact": "artefact", "digest": self.digest, "manifest_sha256": self.manifest_sha256}
        if self.composition is not None:
            event["composition"] = self.composition
        return {"deliver": str(self.directory), "say": {**event, "gate": {"passed": True}, **changes}}


def fake_artefact(folder: Path, seed: int = 0, *, wears: str | None = None) -> FakeArtefact:
    return _write_artefact(folder, seed, kind=ArtefactKind.KNOWLEDGE_MODULE, wears=wears)


def fake_extractor(folder: Path, seed: int = 0, *, weights: int = 0, start: dict[str, str] | None = None) -> FakeArtefact:
    """Equal seeds have the same lora; `weights` is the seed of the composition over it; `start` is what its manifest says of that."""
    made = _write_artefact(folder, seed, kind=ArtefactKind.KNOWLEDGE_EXTRACTOR, wears=None, start=start)
    composition = hashlib.sha256(f"{made.digest}{weights}".encode()).hexdigest()
    (made.directory / "composition.safetensors").write_bytes(composition.encode())
    return replace(made, composition=composition)


def _write_artefact(folder: Path, seed: int, *, kind: ArtefactKind, wears: str | None, start: dict[str, str] | None = None) -> FakeArtefact:
    directory = folder / f"artefact-{uuid.uuid4().hex}"
    directory.mkdir(parents=True)
    digest = hashlib.sha256(f"{seed}{wears or ''}".encode()).hexdigest()
    (directory / "adapter_model.safetensors").write_bytes(digest.encode())
    described = manifest_bytes(replace(_manifest(seed, kind, wears), start=start))
    (directory / "manifest.json").write_bytes(described)
    return FakeArtefact(directory=directory, digest=digest, manifest_sha256=hashlib.sha256(described).hexdigest())


def _manifest(seed: int, kind: ArtefactKind, wears: str | None) -> Manifest:
    return Manifest(
        kind=kind,
        base_fingerprint="0" * 64,
        rank=4,
        alpha=4.0,
        targets=("model.layers.0.self_attn.q_proj",),
        scope="all",
        wears=wears,
        document_revision="1" * 64,
        objective="sdcd",
        recipe={},
        data={},
        seed=seed,
        held_out_loss_before=2.0,
        held_out_loss_after=1.0,
        gate={"passed": True},
        versions={},
        created="2026-01-01T00:00:00Z",
    )


@dataclass(kw_only=True)
class Rig:
    """`settings` have short leases; `rings` counts the reaper's bells."""

    settings: Settings
    database: SyncDatabase
    stopping: threading.Event = field(default_factory=threading.Event)
    rings: int = 0
    threads: list[threading.Thread] = field(default_factory=list)

    @property
    def store(self) -> ModuleStore:
        return ModuleStore(self.settings.root / "modules")

    def upload(self, steps: Sequence[Step], **options: Any) -> tuple[Uploaded, str]:
        """A document whose training runs these steps, and its queued job."""
        with self.database.write() as session:
            document = upload(session)
            job_id = training(session, document, **options).id
        self.write_text(document, steps)
        return document, job_id

    def train_extractor(self, steps: Sequence[Step], *documents: Uploaded, owner: str = "acme", **params: Any) -> str:
        """A queued training of an extractor that runs these steps, on one question about each document; its id. The first document's
        last passage are the steps."""
        with self.database.write() as session:
            learned = [*documents] or [upload(session)]
            first = min(learned, key=lambda document: document.document_id)
            where = {"id": uuid.uuid4().hex, "ordinal": 1_000_000, "char_start": 0, "char_end": 1, "tokens": 1, "page": 1}
            session.execute(insert(Passage).values(**vars(first), **where, text=json.dumps(steps)))
            return extractor_training(session, *learned, owner=owner, **params).id

    def extractors(self, owner: str = "acme") -> list[Extractor]:
        """Oldest first."""
        with self.database.write() as session:
            return extractors.lock(session, owner)

    def write_text(self, document: Uploaded, steps: Sequence[Step]) -> None:
        with self.database.read() as session:
            mine = select(Revision.blob).where(Revision.id == document.revision_id, Revision.tenant_id == document.tenant_id)
            blob = session.scalars(mine).one()
        BlobStore(self.settings.root / "blobs").write_text(f"{blob}.txt", json.dumps(steps))

    def supervisor(self, **options: Any) -> Supervisor:
        options = {"stopping": self.stopping, "command": FAKE_TRAINER, "grace_seconds": 2.0, **options}
        return Supervisor(self.settings, self.database, **options)

    def work(self, **options: Any) -> None:
        """Train until nothing is queued."""
        self.supervisor(**options).work()

    def start_work(self, **options: Any) -> threading.Thread:
        thread = threading.Thread(target=self.work, kwargs=options, daemon=True)
        thread.start()
        self.threads.append(thread)
        return thread

    def ring(self) -> None:
        self.rings += 1

    def expire_lease(self, job_id: str) -> None:
        with self.database.write() as session:
            expire_lease(session, job_id)

    def skip_wait(self, job_id: str) -> None:
        """As if the pause after the job's failed attempt were over."""
        with self.database.write() as session:
            skip_wait(session, job_id)

    def claim(self, owner: str = "worker-1") -> Job:
        with self.database.write() as session:
            job = jobs.claim(session, jobs.WORKER_KINDS, owner, self.settings.lease_seconds)
        assert job is not None
        return job

    def cancel(self, document: Uploaded | None, job_id: str) -> None:
        with self.database.write() as session:
            jobs.request_cancel(session, document.tenant_id if document else "acme", job_id)

    def job(self, job_id: str) -> Job:
        with self.database.read() as session:
            return job_row(session, job_id)

    def document(self, document: Uploaded) -> Document:
        with self.database.read() as session:
            return document_row(session, document)

    def versions(self, document: Uploaded) -> list[Module]:
        with self.database.read() as session:
            return modules.versions(session, document.tenant_id, document.document_id)

    def directory(self, document: Uploaded | None, job_id: str) -> Path:
        """Of a document's job, or of an extractor's of tenant acme."""
        tenant, folder = (document.tenant_id, document.document_id) if document else ("acme", "extractors")
        return self.settings.root / "work" / tenant / folder / job_id

    def reach(self, job_id: str, stage_name: str) -> None:
        eventually(lambda: self.job(job_id).stage == stage_name)

    def trainer_pid(self, document: Uploaded | None, job_id: str, attempt: int = 1) -> int:
        path = self.directory(document, job_id) / f"attempt-{attempt}" / "pid"
        eventually(lambda: path.exists() and path.read_text())
        return int(path.read_text())

    def close(self) -> None:
        """Let whatever still runs come to its end."""
        self.stopping.set()
        for thread in self.threads:
            thread.join(PATIENCE)
        self.database.close()


def make_rig(root: Path, **settings: Any) -> Rig:
    short = {"lease_seconds": 1.0, "reap_seconds": 0.3, "ring_seconds": 0.6}
    chosen = Settings(data_dir=root, **{**short, **settings})
    return Rig(settings=chosen, database=migrated(chosen.sql_url))


def kill_if_alive(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)
