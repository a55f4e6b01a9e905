"""`/jobs`."""

from __future__ import annotations

from fastapi import APIRouter

from server.errors import JobNotFound
from server.jobs import service
from server.jobs.schemas import Job
from server.parts import PartsOf
from server.problems import documented
from server.schemas import Id
from server.security import Reader
from server.transactions import reading

router = APIRouter(tags=["jobs"])


@router.get("/jobs/{job_id}", operation_id="get_job", responses=documented(JobNotFound))
async def get_job(job_id: Id, parts: PartsOf, caller: Reader) -> Job:
    """A job of one of your documents, with its stage and progress."""
    return Job.of(await reading(parts.database, service.find, caller.tenant, job_id))
