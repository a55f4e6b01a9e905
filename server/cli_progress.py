"""A progress bar for each document, or for a job: its stage, how far it is, how long it will take."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Final

from kmserve_client.aio import AsyncClient
from kmserve_client.models import Document, Job
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

LOOK_SECONDS: Final = 0.5


class EtaColumn(ProgressColumn):
    """The seconds that the job itself expects to need still."""

    def render(self, task: Task) -> Text:
        eta = task.fields.get("eta")
        return Text("" if eta is None or task.finished else f"{duration(eta)} left", style="cyan")


class JobBars:
    """`follow` shows documents or jobs until they are settled and returns them."""

    def __init__(self, console: Console) -> None:
        columns = (
            SpinnerColumn(finished_text=" "),
            TextColumn("[bold]{task.description}[/]"),
            TextColumn("{task.fields[stage]}"),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[count]}"),
            TimeElapsedColumn(),
            EtaColumn(),
        )
        self.progress = Progress(*columns, console=console)

    async def follow_job(self, client: AsyncClient, job: Job, title: str) -> Job:
        bar = self.progress.add_task(title, total=None, stage=_stage_of_job(job), count="", eta=None)
        while job.under_way:
            await asyncio.sleep(LOOK_SECONDS)
            job = await client.job(job.id)
            self._show(bar, job, _stage_of_job(job))
        self._finish(bar, job.state)
        return job

    async def follow(self, client: AsyncClient, document: Document) -> Document:
        bar = self.progress.add_task(document.title, total=None, stage=stage_of(document), count="", eta=document.eta_seconds)
        latest = document
        if not document.settled:
            async with aclosing(client.events(document.id)) as changes:
                async for latest in changes:
                    self._show(bar, latest.job, stage_of(latest))
        self._finish(bar, stage_of(latest))
        return latest

    def _show(self, bar: TaskID, job: Job | None, stage: str) -> None:
        done, total, count, eta = 0.0, None, "", None
        if job is not None and (progress := job.progress) is not None:
            done, total, eta = progress.done, progress.total or None, progress.eta_seconds
            count = f"{progress.done:g}/{progress.total:g} {progress.unit or ''}".strip()
        self.progress.update(bar, completed=done, total=total, stage=stage, count=count, eta=eta)

    def _finish(self, bar: TaskID, stage: str) -> None:
        self.progress.update(bar, completed=1, total=1, stage=stage, count="", eta=None)


def stage_of(document: Document) -> str:
    """What is going on, in one or two words."""
    if document.settled or document.job is None:
        return document.status
    return _stage_of_job(document.job)


def _stage_of_job(job: Job) -> str:
    kind = {"ingest": "indexing", "train": "training", "extractor": "training"}.get(job.kind, job.kind)
    if job.state == "queued":
        return f"{kind}: waiting"
    return f"{kind}: {job.stage}" if job.stage else kind


def duration(seconds: float) -> str:
    minutes, rest = divmod(max(0, round(seconds)), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
