"""The bell between the API and the workers: one Celery message that says "look at the job table", over any broker Celery knows.

Knows nothing of jobs. The embedded default is a directory: a message is a file that appears and is taken by a rename, so that no
process ever reads half of one (kombu's own filesystem transport can, and its reader dies of it).
"""

from __future__ import annotations

import logging
import time
import uuid
from pathlib import Path
from queue import Empty
from typing import Any, Final

from celery import Celery
from kombu.transport import virtual
from kombu.utils.json import dumps, loads

from server.settings import Settings

logger = logging.getLogger(__name__)

TRAIN_TASK: Final = "worker.train"
QUEUE: Final = "kmserve.train"
POLL_SECONDS: Final = 0.5
CONNECT_SECONDS: Final = 4.0
_MESSAGE: Final = ".message"


def celery_options(settings: Settings) -> dict[str, Any]:
    """What whoever rings and whoever listens must agree on. A broker that is down is noticed within seconds, not waited for."""
    impatient = {"max_retries": 1, "interval_start": 0, "interval_step": 0.2, "interval_max": 0.2}
    options: dict[str, Any] = {
        "broker_url": settings.celery_url,
        "broker_connection_timeout": CONNECT_SECONDS,
        "broker_transport_options": {"socket_connect_timeout": CONNECT_SECONDS, **impatient},
        "task_default_queue": QUEUE,
        "task_serializer": "json",
        "accept_content": ["json"],
        "result_backend": None,
        "task_ignore_result": True,
        "task_send_sent_event": False,
        "task_publish_retry_policy": impatient,
    }
    if settings.celery_url.startswith("filesystem:"):
        options["broker_url"] = "filesystem://localhost"  # without a host, kombu warns that it takes this one
        options["broker_transport"] = f"{__name__}:DirectoryTransport"
        options["broker_transport_options"] = {"directory": str(settings.root / "broker"), "polling_interval": POLL_SECONDS}
    return options


def ring(app: Celery) -> bool:
    """Wake a worker. False when the broker could not be reached, which is logged and never raised: the reaper rings again."""
    try:
        app.send_task(TRAIN_TASK, ignore_result=True)
    except Exception as error:  # each transport raises its own kind, and a bell is only a hint
        logger.warning("could not ring for queued training, the reaper will: %s", error)
        return False
    return True


class DirectoryChannel(virtual.Channel):
    """A queue is a directory, its order that of the file names."""

    def _put(self, queue: str, message: dict[str, Any], **_: Any) -> None:
        folder = self._folder(queue)
        name = f"{time.time_ns():020d}-{uuid.uuid4().hex}"
        unseen = folder / f".{name}"
        unseen.write_text(dumps(message), encoding="utf-8")
        unseen.rename(folder / f"{name}{_MESSAGE}")

    def _get(self, queue: str, timeout: float | None = None) -> Any:
        for path in self._waiting(queue):
            mine = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
            try:
                path.rename(mine)
            except FileNotFoundError:  # another worker took it
                continue
            payload = mine.read_text(encoding="utf-8")
            mine.unlink()
            try:
                return loads(payload)
            except ValueError:
                logger.warning("dropped a message that is no JSON")
        raise Empty

    def _size(self, queue: str) -> int:
        return len(self._waiting(queue))

    def _purge(self, queue: str) -> int:
        paths = self._waiting(queue)
        for path in paths:
            path.unlink(missing_ok=True)
        return len(paths)

    def _waiting(self, queue: str) -> list[Path]:
        return sorted(self._folder(queue).glob(f"*{_MESSAGE}"))

    def _folder(self, queue: str) -> Path:
        client: Any = self.connection.client
        folder = Path(client.transport_options["directory"]) / queue
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder


class DirectoryTransport(virtual.Transport):
    """Chosen by `broker_transport`, before the scheme of the URL."""

    Channel = DirectoryChannel
    implements = virtual.Transport.implements.extend(asynchronous=False, exchange_type=frozenset(["direct"]))
    default_port = 0
    driver_type = "filesystem"
    driver_name = "directory"

    def __init__(self, client: Any, **options: Any) -> None:
        super().__init__(client, **options)
        self.state = virtual.BrokerState()

    def driver_version(self) -> str:
        return "1"
