"""The API as `python -m server.app` runs it, with a tiny random base model: real lifespan, engine, embedder, local index and ingest."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from sqlalchemy import select

from server import serving
from server.db import documents, jobs, modules
from server.db.modules import NewModule
from server.db.session import SyncDatabase
from server.db.tables import DocumentStatus, Job, JobKind, Module
from server.engine.base_model import adapted_layers, load_base, prepare_base
from server.modules.artefact import write_artefact
from server.modules.manifest import Manifest
from server.modules.store import ModuleStore
from server.settings import Settings
from tests.support.artefacts import lora, manifest
from tests.support.base_files import save, stretched
from tests.support.documents import pdf
from tests.support.servers import free_port

STOPPED = (0, -signal.SIGTERM)
"""uvicorn shuts down in order, and then lets the signal do what it does."""
LEAVE = "Staff get 31 days of leave in each year. Leave is asked for on the portal."


class Server:
    """A process with its data directory, and a client with its admin key."""

    def __init__(self, root: Path, base: Path) -> None:
        self.root = root
        self.port = free_port()
        environ = {name: value for name, value in os.environ.items() if not name.startswith("KMSERVE_")}
        mine = {"DATA_DIR": root, "BASE_MODEL": base, "PORT": self.port, "LOG_FORMAT": "json", "REAP_SECONDS": 1}
        self._environ = {**environ, "OMP_NUM_THREADS": "1", **{f"KMSERVE_{name}": str(value) for name, value in mine.items()}}
        self.log = root.with_suffix(".log")
        self.process: subprocess.Popen[bytes] | None = None
        self.client = httpx2.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=120)

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen([sys.executable, "-m", "server.app"], env=self._environ, stdout=log, stderr=log)
        deadline = time.monotonic() + 300
        while not self._ready():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.1)
        key = (self.root / "admin.key").read_text().strip()
        self.client.headers["Authorization"] = f"Bearer {key}"

    def stop(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(90)

    def _ready(self) -> bool:
        try:
            response = self.client.get("/health/ready")
        except httpx2.TransportError:
            return False
        assert response.status_code == 200 or response.json()["code"] == "starting", response.text
        return response.status_code == 200

    def uploaded(self, name: str, content: bytes, **fields: str) -> dict[str, Any]:
        response = self.client.post("/documents", files={"file": (name, content)}, data=fields)
        assert response.status_code == 202, response.text
        document: dict[str, Any] = response.json()
        while document["status"] == "ingesting":
            response = self.client.get(f"/documents/{document['id']}?wait=30", headers={"If-None-Match": f'"{document["row_version"]}"'})
            document = response.json() if response.status_code == 200 else document
        return document

    def ask(self, **body: Any) -> Any:
        return self.client.post("/ask", json={"question": "How many days of leave?", "max_tokens": 8, **body}).json()

    def publish(self, document: dict[str, Any], base: Path, **changes: Any) -> Module:
        """What a worker does after a training: write the artefact, then the row."""
        described = _manifest(base, document, changes)
        store, database = ModuleStore(self.root / "modules"), SyncDatabase(f"sqlite:///{self.root / 'kmserve.db'}")
        tenant, document_id = "default", document["id"]
        staged = store.staging(tenant, document_id)
        tensors = lora(_shapes(base), rank=described.rank, seed=int(document_id[4:12], 16))
        ref = write_artefact(staged, a=tensors[0], b=tensors[1], manifest=described, base_model_name="tiny")
        store.publish(staged, tenant, document_id, ref.digest)
        try:
            with database.write() as session:
                job = jobs.claim(session, JobKind.TRAIN, "test", 60.0)
                assert job is not None
                assert job.document_id == document_id
                return _record(session, job, ref.digest, ref.manifest_sha256, described)
        finally:
            database.close()

    def module(self, module_id: str) -> Module:
        database = SyncDatabase(f"sqlite:///{self.root / 'kmserve.db'}")
        with database.read() as session:
            found = session.scalars(select(Module).where(Module.id == module_id, Module.tenant_id == "default")).one()
        database.close()
        return found


def _record(session: Any, job: Job, digest: str, manifest_sha256: str, described: Manifest) -> Module:
    owner = {**vars(job.subject), "job_id": job.id}
    proof = {"digest": digest, "manifest_sha256": manifest_sha256, "base_fingerprint": described.base_fingerprint}
    new = NewModule(**owner, **proof, wears=None, scope=described.scope, gate={"auto_mode": "open_book"})
    module = modules.insert_version(session, new)
    modules.activate(session, module)
    documents.advance(session, job, DocumentStatus.READY)
    jobs.succeed(session, job.id, job.attempt)
    return module


def _shapes(base: Path) -> dict[str, tuple[int, int]]:
    loaded = load_base(prepare_base(str(base), base), device="cpu", dtype="float32")
    return {name: (linear.out_features, linear.in_features) for name, linear in adapted_layers(loaded.model).items()}


def _manifest(base: Path, document: dict[str, Any], changes: dict[str, Any]) -> Manifest:
    fingerprint = prepare_base(str(base), base).fingerprint
    plain = {"base_fingerprint": fingerprint, "targets": tuple(_shapes(base)), "document_revision": document["revision"]["sha256"]}
    return manifest(**{**plain, **changes})


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stretched(save(tmp_path_factory.mktemp("base")))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server") / "data", base)
    server.start()
    yield server
    assert server.stop() in STOPPED, server.log.read_text()
    server.client.close()


@pytest.fixture
def trained(server: Server, base: Path, request: pytest.FixtureRequest) -> tuple[dict[str, Any], Module]:
    document = server.uploaded(f"{request.node.name}.md", f"# {request.node.name}\n\n{LEAVE}".encode())
    return document, server.publish(document, base)


def test_the_data_directory_is_private(server: Server) -> None:
    assert stat.S_IMODE(server.root.stat().st_mode) == 0o700
    assert stat.S_IMODE((server.root / "admin.key").stat().st_mode) == 0o600
    assert str(server.root / "admin.key") in server.log.read_text()
    assert (server.root / "admin.key").read_text().strip() not in server.log.read_text()


def test_a_document_answers_by_retrieval_as_soon_as_it_is_indexed(server: Server) -> None:
    document = server.uploaded("policy.pdf", pdf([LEAVE, "Trains are booked by the office."]), train="never")
    assert (document["status"], document["revision"]["media_type"], document["revision"]["pages"]) == (
        "retrieval_ready",
        "application/pdf",
        2,
    )
    answer = server.ask(document_id=document["id"])
    assert (answer["used"]["mode"], answer["used"]["base"]) == ("retrieval", "base0")
    assert answer["citations"][0]["page"] == 1
    assert "31 days" in answer["citations"][0]["quote"]
    found = server.client.post("/search", json={"query": "Who books trains?", "document_ids": [document["id"]], "top_k": 1}).json()
    assert "Trains" in found["hits"][0]["quote"]


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("broken.pdf", b"%PDF-1.4 nothing that follows", "broken_document"),
        ("scan.pdf", pdf([""]), "no_text_layer"),
        ("a.txt", b" \n ", "empty_document"),
    ],
)
def test_a_document_that_cannot_be_read_says_why(server: Server, name: str, content: bytes, code: str) -> None:
    document = server.uploaded(name, content)
    assert (document["status"], document["error"]["code"]) == ("failed", code)
    refused = server.ask(document_id=document["id"])
    assert (refused["code"], refused["job_state"]) == ("not_retrievable", "failed")


def test_a_published_module_answers_and_changes_the_answer(server: Server, trained: tuple[dict[str, Any], Module]) -> None:
    document, module = trained
    answer = server.ask(document_id=document["id"], score=["31 days"])
    assert (answer["used"]["mode"], answer["used"]["km"]["digest"]) == ("open_book", module.digest)
    closed = server.ask(document_id=document["id"], mode="closed_book", score=["31 days"])
    bare = server.ask(document_id=document["id"], mode="base", score=["31 days"])
    assert closed["scores"][0]["total"] != pytest.approx(bare["scores"][0]["total"], abs=1e-3)
    with server.client.stream(
        "POST", "/ask", json={"question": "How many?", "document_id": document["id"], "stream": True, "max_tokens": 4}
    ) as stream:
        events = [line.removeprefix("event: ") for line in stream.iter_lines() if line.startswith("event: ")]
    assert events[0] == "answer.started"
    assert events[-1] == "answer.completed"


def test_a_tampered_module_is_quarantined(server: Server, base: Path, trained: tuple[dict[str, Any], Module]) -> None:
    document, module = trained
    files = ModuleStore(server.root / "modules").path("default", document["id"], module.digest)
    weights = bytearray((files / "adapter_model.safetensors").read_bytes())
    weights[-1] ^= 1
    (files / "adapter_model.safetensors").write_bytes(bytes(weights))
    for _ in range(2):
        assert server.ask(document_id=document["id"], mode="closed_book")["code"] == "module_corrupt"
    row = server.module(module.id)
    assert (row.state, files.exists()) == ("quarantined", False)
    assert "digest" in (row.state_reason or "")
    assert server.ask(document_id=document["id"], fallback="retrieval")["used"]["mode"] == "retrieval"


def test_a_module_of_another_base_model_is_refused_and_kept(server: Server, base: Path) -> None:
    document = server.uploaded("other.md", b"# Other\n\nA document whose module is of another base model.")
    module = server.publish(document, base, base_fingerprint="0" * 64)
    assert server.ask(document_id=document["id"], mode="closed_book")["code"] == "module_wrong_base"
    assert server.module(module.id).state == "published"


def test_a_prompt_longer_than_the_context_is_refused(server: Server, trained: tuple[dict[str, Any], Module]) -> None:
    document, _ = trained
    refused = server.ask(document_id=document["id"], mode="closed_book", question="how " * 1000)
    assert (refused["code"], refused["limit"]) == ("context_limit", 2048)


def test_nothing_of_a_deleted_document_is_on_the_disk(server: Server, base: Path) -> None:
    marker = "zanzibarian flamingos number eleven"
    document = server.uploaded("marker.md", f"# Birds\n\n{marker}.".encode())
    module = server.publish(document, base)
    server.ask(document_id=document["id"], mode="open_book")
    receipt = server.client.delete(f"/documents/{document['id']}").json()
    assert (receipt["complete"], receipt["removed"]["modules"]) == (True, [module.digest])
    assert server.ask(document_id=document["id"])["code"] == "document_not_found"
    hits = server.client.post("/search", json={"query": marker}).json()["hits"]
    assert document["id"] not in [hit["document_id"] for hit in hits]
    assert marker not in server.log.read_text()
    left = [path for path in server.root.rglob("*") if path.is_file() and marker.encode() in path.read_bytes()]
    assert left == []
    assert not list(server.root.rglob(f"*{document['id']}*"))


def test_a_second_process_on_the_same_data_is_refused(server: Server, base: Path) -> None:
    second = Server(server.root, base)
    second.log = server.root.with_name("second.log")
    with pytest.raises(AssertionError, match="another API process"):
        second.start()
    second.client.close()


def test_after_a_kill_it_goes_on_with_what_it_was_doing(tmp_path: Path, base: Path) -> None:
    server = Server(tmp_path / "data", base)
    server.start()
    document = server.uploaded("policy.md", f"# Policy\n\n{LEAVE}".encode(), train="never")
    incoming = server.root / "blobs" / ".incoming" / "cut-off"
    incoming.write_bytes(b"half an upload")
    server.stop(signal.SIGKILL)
    server.start()
    assert not incoming.exists()
    assert server.ask(document_id=document["id"])["used"]["mode"] == "retrieval"
    assert server.stop() in STOPPED
    server.client.close()
    shutil.rmtree(server.root)


def test_every_engine_setting_takes_effect(tmp_path: Path) -> None:
    settings = Settings(
        data_dir=tmp_path,
        module_slots=3,
        module_host_bytes=5,
        max_rank=7,
        max_batch_size=9,
        max_queue=11,
        kv_cache_tokens=640,
        prefix_cache_tokens=32,
        step_tokens=13,
        engine_threads=2,
        passage_tokens=99,
    )
    cores = serving.core_share(settings)
    options = serving.engine_options(settings, cores)
    assert (options.slots, options.host_bytes, options.max_rank, options.max_batch, options.max_queue) == (3, 5, 7, 9, 11)
    assert (options.kv_tokens, options.prefix_tokens, options.step_tokens) == (640, 32, 13)
    assert (options.cores, cores.threads()) == (cores, 2)
    cores.close()


def test_a_base_model_that_is_not_there_is_what_readiness_says(tmp_path: Path) -> None:
    server = Server(tmp_path / "data", tmp_path / "nothing")
    with pytest.raises(AssertionError, match="base_model_not_found"):
        server.start()
    assert server.client.get("/health/live").status_code == 200
    server.stop()
    server.client.close()
