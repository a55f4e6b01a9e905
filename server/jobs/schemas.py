"""Jobs as the API shows them."""

from __future__ import annotations

from typing import Any, Final

from pydantic import ConfigDict

from server.db import tables
from server.db.tables import JobKind, JobState
from server.schemas import Failure, Value


class Progress(Value):
    """`done` of `total` `unit`s of the job's stage; `eta_seconds` is to the end of the job, where the job knows."""

    done: float
    total: float
    unit: str
    eta_seconds: float | None = None


JOB_EXAMPLE: Final[dict[str, Any]] = {
    "id": "job_0f8b7a6c5d4e3f2a1b0c9d8e7f6a5b4c",
    "kind": "train",
    "state": "running",
    "document_id": "doc_3f2a1b0c9d8e7f6a5b4c0f8b7a6c5d4e",
    "extractor_id": None,
    "stage": "fitting",
    "progress": {"done": 120, "total": 400, "unit": "steps", "eta_seconds": 73.5},
    "metrics": {"held_out_loss": 1.21},
    "error": None,
    "attempt": 1,
    "cancel_requested": False,
    "created_at": 1794500000.0,
    "started_at": 1794500003.5,
    "finished_at": None,
}


class Job(Value):
    """Background work. `attempt` counts from 1 once a worker has taken it. A job of kind `extractor` is about no single document:
    `extractor_id` is what it published."""

    model_config = ConfigDict(json_schema_extra={"example": JOB_EXAMPLE})

    id: str
    kind: JobKind
    state: JobState
    document_id: str | None
    extractor_id: str | None = None
    stage: str | None
    progress: Progress | None
    metrics: dict[str, Any]
    error: Failure | None
    attempt: int
    cancel_requested: bool
    created_at: float
    started_at: float | None
    finished_at: float | None

    @property
    def under_way(self) -> bool:
        return self.state in (JobState.QUEUED, JobState.RUNNING)

    @staticmethod
    def of(row: tables.Job, extractor_id: str | None = None) -> Job:
        return Job.model_validate(row).model_copy(update={"extractor_id": extractor_id})
