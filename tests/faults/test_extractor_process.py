"""An extractor by the real trainer under the real supervisor, then a module that is distilled while wearing it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from server.db import activation
from server.db.blobs import BlobStore
from server.db.tables import Extractor, JobState
from server.modules.artefact import MANIFEST
from server.modules.manifest import Manifest, parse_manifest
from tests.support.real_trainer import MACHINE, RECIPE, TEXT, tiny_base_on_disk
from tests.support.rows import Uploaded
from tests.support.training_rig import Rig, make_rig
from worker.supervisor import TRAINER

MODULE: dict[str, Any] = {**RECIPE, "max_steps": 8, "gate_improvement": -1.0}
EXTRACTOR: dict[str, Any] = {
    "rank": 4,
    "alpha": 4.0,
    "max_steps": 6,
    "batch_size": 4,
    "evaluate_every": 3,
    "learning_rate": 1e-2,
    "gate_improvement": -1.0,
}


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = make_rig(tmp_path / "data", lease_seconds=60, base_model=str(tiny_base_on_disk(tmp_path)), modules_wear_extractor=True, **MACHINE)
    yield rig
    rig.close()


def test_modules_then_an_extractor_over_them_then_a_module_that_wears_it(rig: Rig) -> None:
    documents = [trained(rig) for _ in range(2)]
    assert [rig.versions(document)[-1].wears for document in documents] == [None, None]
    job_id = rig.train_extractor([], *documents, recipe=EXTRACTOR)
    for document in documents:
        write(rig, document)
    rig.work(command=TRAINER)
    job = rig.job(job_id)
    assert (job.state, job.error) == (JobState.SUCCEEDED, None)
    assert set(job.metrics["gate"]["weights"]) == {"w_km", "w_ke"}
    [extractor] = rig.extractors()
    assert not extractor.active
    with rig.database.write() as session:
        activation.switch(session, "acme", extractor.id, wearing=True, max_attempts=3)
    later = trained(rig)
    assert rig.versions(later)[-1].wears == extractor.lora_digest
    _goes_on_from(rig, extractor, documents)


def _goes_on_from(rig: Rig, active: Extractor, documents: Sequence[Uploaded]) -> None:
    """What is trained next begins from the active one, and one that cannot, fails."""
    steps = {name: value for name, value in EXTRACTOR.items() if name not in ("rank", "alpha")}
    on = rig.train_extractor([], *documents, recipe=steps)
    refused = rig.train_extractor([], *documents, recipe={**steps, "rank": 8}, start="active")
    rig.work(command=TRAINER)
    assert [rig.job(job_id).state for job_id in (on, refused)] == [JobState.SUCCEEDED, JobState.FAILED]
    assert (rig.job(refused).error or {})["code"] == "invalid_input"
    assert "has rank 4 and the recipe has rank 8" in (rig.job(refused).error or {})["message"]
    [made] = [_manifest(rig, row) for row in rig.extractors() if row.job_id == on]
    assert made.start == {"lora": active.lora_digest, "composition": active.composition_digest}
    assert (made.rank, made.alpha) == (4, 4.0)


def _manifest(rig: Rig, row: Extractor) -> Manifest:
    return parse_manifest((rig.store.extractor_path(row.owner, row.composition_digest) / MANIFEST).read_bytes())


def trained(rig: Rig) -> Uploaded:
    """A document whose module the real trainer made."""
    document, job_id = rig.upload([], params={"preset": "quick", "recipe": MODULE})
    write(rig, document)
    rig.work(command=TRAINER)
    job = rig.job(job_id)
    assert (job.state, job.error) == (JobState.SUCCEEDED, None)
    return document


def write(rig: Rig, document: Uploaded) -> None:
    blob = f"{document.tenant_id}/{document.document_id}/{document.revision_id}.txt"
    BlobStore(rig.settings.root / "blobs").write_text(blob, TEXT)
