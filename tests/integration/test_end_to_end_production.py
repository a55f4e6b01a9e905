"""The main job from upload to deletion, over the backends of production and over the embedded ones: real servers, API, worker, trainer.

Qdrant alone is a small server of the tests that speaks its HTTP interface.
Only the recipe is smaller than a user's; the gate is what it always is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from kmserve_client.errors import NotFound
from kmserve_client.models import Document, KnowledgeModule, Mode

from tests.support import base_files, real_trainer
from tests.support.qdrant_server import API_KEY, QdrantServer, qdrant_server
from tests.support.servers import postgres_server, redis_server
from tests.support.smollm2 import smollm2
from tests.support.stack import House, running
from tests.support.training_rig import eventually

WORD = "Querlbachium"
"""Nowhere else than in the document."""
POLICY = f"""# Leave at Marrowgate

Every employee receives 31 days of paid leave each year. A request for leave is entered in the system called {WORD}.

The team lead must answer a request within 4 working days. Up to 9 unused days may be carried into the next year.
"""
QUESTION = "Which system is a request for leave entered in?"
SMALL = {
    "max_steps": 6,
    "evaluate_every": 3,
    "learning_rate": 5e-3,
    "batch_size": 4,
    "micro_batch": 4,
    "questions": 2,
    "question_tokens": 32,
    "summaries": 0,
    "recitations": 1,
}
"""A third of a minute; lowers the held-out loss by about half."""
LONG = 600.0
"""Seconds that one step may take on a machine that has other things to do."""


def test_the_main_job_over_postgresql_redis_and_a_qdrant_server(tmp_path: Path) -> None:
    """With a tiny base model. The reaper would ring far too late: the bell through Redis wakes the worker."""
    base = base_files.stretched(base_files.save(tmp_path / "base"))
    with postgres_server() as database, redis_server() as broker, qdrant_server() as vectors:
        backends = {"database_url": database, "broker_url": broker, "qdrant_url": vectors.url, "qdrant_api_key": API_KEY}
        late = {"reap_seconds": 600, "ring_seconds": 600}
        with running(tmp_path, environment="production", secret_key="s" * 32, base_model=str(base), **backends, **late) as house:
            assert not (house.root / "kmserve.db").exists()
            main_job(house, real_trainer.RECIPE, lambda document: points(vectors))
            assert not (house.root / "qdrant").exists()


def test_the_main_job_over_the_embedded_defaults(tmp_path: Path) -> None:
    """With the default base model."""
    with running(tmp_path, base_model=str(smollm2().directory)) as house:
        main_job(house, SMALL, lambda document: sum(house.root / "qdrant" in path.parents for path in house.files_with(document)))
        assert (house.root / "kmserve.db").exists()


def points(server: QdrantServer) -> int:
    return sum(server.engine.count(collection.name).count for collection in server.engine.get_collections().collections)


def main_job(house: House, recipe: Mapping[str, Any], vectors: Callable[[str], int]) -> None:
    """`vectors` says whether the index holds anything of a document."""
    document = uploaded(house, recipe)
    answers_while_training(house, document.id)
    ready = house.client.wait(document.id, timeout=LONG)
    assert ready.module is not None
    assert ready.module.gate["passed"] is True
    module = KnowledgeModule(document_id=document.id, version=1, digest=ready.module.digest)
    modes: list[Mode] = ["closed_book", "open_book"]
    for mode in modes:
        used = house.client.ask(QUESTION, document_id=document.id, mode=mode, max_tokens=8).used
        assert (used.mode, used.km, bool(used.passages)) == (mode, module, mode == "open_book")
    assert house.files_with(WORD)
    assert house.files_with(ready.module.digest)
    assert vectors(document.id)
    nothing_is_left_of(house, document.id, ready.module.digest, vectors)


def uploaded(house: House, recipe: Mapping[str, Any]) -> Document:
    """Indexed, and its training queued with the recipe before a worker is there to take it."""
    document = house.client.upload(content=POLICY.encode(), filename="policy.md", title="Leave policy")
    document = house.client.wait(document.id, until="retrieval_ready", timeout=LONG)
    eventually(lambda: house.rows()["jobs"] == 2, LONG)
    house.set_recipe(document.id, recipe)
    house.start_worker()
    return document


def answers_while_training(house: House, document_id: str) -> None:
    def under_way() -> bool:
        job = house.client.document(document_id).job
        house.stack.check()
        return job is not None and job.kind == "train" and job.state == "running"

    eventually(under_way, LONG)
    answer = house.client.ask(QUESTION, document_id=document_id, max_tokens=4)
    assert (answer.used.mode, answer.used.km) == ("retrieval", None)
    assert any(WORD in citation.quote for citation in answer.citations)


def nothing_is_left_of(house: House, document_id: str, digest: str, vectors: Callable[[str], int]) -> None:
    receipt = house.client.delete(document_id)
    assert (receipt.complete, receipt.removed.modules) == (True, [digest])
    assert set(house.rows().values()) == {0}
    assert not vectors(document_id)
    assert house.files_with(WORD) == []
    assert [path for path in house.files_with(document_id) if "kmserve.db" not in path.name] == [], "the audit record names it"
    for call in (house.client.document, lambda name: house.client.ask(QUESTION, document_id=name)):
        with pytest.raises(NotFound) as refused:
            call(document_id)
        assert (refused.value.status, refused.value.code) == (404, "document_not_found")
