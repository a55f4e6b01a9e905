"""What becomes of a job whose trainer ended without a result to publish: the exit-code protocol in one place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy.orm import Session

from server.db import jobs
from server.db.tables import Job, JobKind
from server.errors import GeneratorRefused, GeneratorUnavailable, GpuBusy, GpuOutOfMemory, TrainerCrashed
from worker.events import ExitCode, Failure, Result
from worker.extractor.recipe import extractor_recipe
from worker.training.recipe import recipe_for

_RETRIED = "retried_out_of_memory"
_MENDED_OUTSIDE: Final = frozenset({GeneratorUnavailable.code, GeneratorRefused.code})
"""A trainer that ends with one of these is tried again, as long as there are attempts: a service comes back, an operator sets it right."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """How a trainer ended. `cancelled`: its job is to be; `stopped`: it was asked to end; `lost`: its job belongs to another attempt."""

    code: int
    result: Result | None
    failure: Failure | None
    cancelled: bool
    stopped: bool
    lost: bool

    @property
    def crashed(self) -> bool:
        """Ended otherwise than by the protocol, and not by us."""
        failed_well = self.code == ExitCode.FAILED and self.failure is not None
        succeeded_well = self.code == ExitCode.RESULT and self.result is not None
        known = self.code in (ExitCode.CHECKPOINTED, ExitCode.OUT_OF_MEMORY, ExitCode.GPU_BUSY)
        return not (failed_well or succeeded_well or known or self.stopped or self.lost)


def settle(session: Session, job: Job, run: Run) -> Job:
    """Move the job to where the run leaves it: cancelled, queued again, or failed. Raises JobLost."""
    if run.cancelled:
        return jobs.cancelled(session, job.id, job.attempt)
    if run.code == ExitCode.FAILED and run.failure is not None:
        end = jobs.retry if run.failure.code in _MENDED_OUTSIDE else jobs.fail
        return end(session, job.id, job.attempt, code=run.failure.code, message=run.failure.message)
    if run.code == ExitCode.OUT_OF_MEMORY:
        return _with_less_memory(session, job)
    if run.code == ExitCode.GPU_BUSY:
        message = "other processes hold the accelerator's memory; the training waits and tries again"
        return jobs.release(session, job.id, job.attempt, error={"code": GpuBusy.code, "message": message})
    if run.code == ExitCode.CHECKPOINTED or run.stopped:
        return jobs.release(session, job.id, job.attempt)
    message = "the training process ended unexpectedly; the worker's log says where"
    return jobs.retry(session, job.id, job.attempt, code=TrainerCrashed.code, message=message)


def _with_less_memory(session: Session, job: Job) -> Job:
    """Once, with half the micro-batch; gradients are accumulated, so the result is the same."""
    message = "the accelerator has too little memory for this training; choose a smaller model, rank or micro_batch"
    if job.params.get(_RETRIED):
        return jobs.fail(session, job.id, job.attempt, code=GpuOutOfMemory.code, message=message)
    return jobs.retry(session, job.id, job.attempt, code=GpuOutOfMemory.code, message=message, params=_halved(job.kind, job.params))


def _halved(kind: str, params: dict[str, Any]) -> dict[str, Any]:
    overrides = params.get("recipe") or {}
    if kind == JobKind.EXTRACTOR:
        micro_batch = extractor_recipe(overrides, modules=True).micro_batch
    else:
        micro_batch = recipe_for(params.get("preset") or "quick", overrides).micro_batch
    return {**params, "recipe": {**overrides, "micro_batch": max(1, micro_batch // 2)}, _RETRIED: True}
