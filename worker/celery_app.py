"""The worker process: `python -m worker.celery_app`. Celery only wakes it; the job table says what there is to do.

The pool is one thread, so that this process alone holds the trainer's pipe: when it is killed, the pipe closes and the trainer exits.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import closing
from typing import Any, Final

from celery import Celery, signals
from celery.apps.worker import Worker
from celery.worker import WorkController

from server.broker import celery_options, ring
from server.db.migrate import upgrade
from server.db.session import SyncDatabase
from server.settings import Settings, load_settings
from worker.logs import configure_logs
from worker.reaper import Reaper
from worker.supervisor import TRAINER, Supervisor
from worker.tasks import register

OPTIONS: Final[dict[str, Any]] = {
    "worker_pool": "threads",
    "worker_concurrency": 1,
    "worker_pool_start_method": "spawn",
    "worker_prefetch_multiplier": 1,
    "task_acks_late": False,
    "worker_enable_remote_control": False,
    "worker_send_task_events": False,
    "worker_hijack_root_logger": False,
    "worker_redirect_stdouts": False,
    "worker_cancel_long_running_tasks_on_connection_loss": False,
    "broker_connection_retry_on_startup": True,
    "broker_connection_max_retries": None,
}


class TrainingWorker(Worker):
    """A Celery worker without the talk between workers."""

    def __init__(self, app: Celery, settings: Settings) -> None:
        quiet: dict[str, Any] = {"without_gossip": True, "without_mingle": True, "without_heartbeat": True, "quiet": True}
        super().__init__(app=app, loglevel=settings.log_level.upper(), **quiet)

    def install_platform_tweaks(self, worker: WorkController) -> None:
        """A hangup ends the worker like SIGTERM; Celery's answer to it is to start the process anew without its arguments."""
        super().install_platform_tweaks(worker)
        signal.signal(signal.SIGHUP, signal.getsignal(signal.SIGTERM))


def create_app(settings: Settings) -> Celery:
    app = Celery("kmserve", set_as_current=False)
    app.conf.update(celery_options(settings) | OPTIONS)
    return app


def run(settings: Settings, command: Sequence[str] = TRAINER) -> int:
    """Be a worker until told to stop; returns the exit code. `command` starts the trainer."""
    configure_logs(settings)
    upgrade(settings.sql_url)
    app = create_app(settings)
    stopping = threading.Event()
    signals.worker_shutting_down.connect(lambda **_: stopping.set(), weak=False)
    with closing(SyncDatabase(settings.sql_url)) as database:
        register(app, Supervisor(settings, database, stopping=stopping, command=command))
        reaper = Reaper(settings, database, ring=lambda: ring(app))
        worker = TrainingWorker(app, settings)
        reaper.start()
        worker.start()
        reaper.stop()
    ring(app)  # for the job handed back, and for bells that this worker took while it stopped
    return int(worker.exitcode or 0)


def main() -> None:
    sys.exit(run(load_settings()))


if __name__ == "__main__":
    main()
