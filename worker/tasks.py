"""The worker's only task. Its message carries nothing: it says that the job table is worth a look."""

from __future__ import annotations

from celery import Celery

from server.broker import TRAIN_TASK
from worker.supervisor import Supervisor


def register(app: Celery, supervisor: Supervisor) -> None:
    """A message that comes twice finds nothing to claim, and one that is lost is rung again: neither acknowledgement nor retry matters."""

    @app.task(name=TRAIN_TASK)
    def train() -> None:
        supervisor.work()
