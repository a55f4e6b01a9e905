"""`/jobs`."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from server.errors import JobNotFound, NotCancellable
from server.jobs import service
from server.jobs.schemas import Job
from server.parts import PartsOf
from server.problems import documented
from server.schemas import Id
from server.security import Reader, Writer

router = APIRouter(tags=["jobs"])


@router.get("/jobs/{job_id}", operation_id="get_job", responses=documented(JobNotFound))
async def get_job(
    job_id: Id, parts: PartsOf, caller: Reader, wait: Annotated[int, Query(ge=0, le=service.LONGEST_WAIT_SECONDS)] = 0
) -> Job:
    """A job of one of your documents, or of an extractor, with its stage and progress.

    With `wait`, the answer comes when the job has ended, at the latest after that many seconds.
    """
    return await service.show(parts, caller.tenant, job_id, wait=wait)


@router.post("/jobs/{job_id}/cancel", operation_id="cancel_job", responses=documented(JobNotFound, NotCancellable))
async def cancel_job(job_id: Id, parts: PartsOf, caller: Writer) -> Job:
    """Stop a job: at once if it is queued, else within seconds."""
    return await service.cancel(parts, caller.tenant, job_id)
