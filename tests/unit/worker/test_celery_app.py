"""The effective value of every Celery option: of the configuration, and of the worker that is made from it."""

from __future__ import annotations

import logging
import signal
from pathlib import Path
from typing import Any

import celery
import pytest
from celery.app.defaults import DEFAULTS
from celery.concurrency.thread import TaskPool

from server.broker import QUEUE, TRAIN_TASK, DirectoryTransport
from server.settings import Settings
from tests.support.training_rig import make_rig
from worker.celery_app import OPTIONS, TrainingWorker, create_app
from worker.tasks import register


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path)


pytestmark = pytest.mark.filterwarnings("ignore:You're running the worker with superuser privileges")


@pytest.fixture
def worker(settings: Settings) -> Any:
    """The stubs of Celery know no attribute of a worker."""
    return TrainingWorker(create_app(settings), settings)


EFFECTIVE: dict[str, Any] = {
    **OPTIONS,
    "broker_connection_timeout": 4.0,
    "task_default_queue": QUEUE,
    "task_serializer": "json",
    "accept_content": ["json"],
    "result_backend": None,
    "task_ignore_result": True,
    "task_send_sent_event": False,
    "task_publish_retry_policy": {"max_retries": 1, "interval_start": 0, "interval_step": 0.2, "interval_max": 0.2},
}


@pytest.mark.parametrize("name", sorted(EFFECTIVE))
def test_configuration(settings: Settings, name: str) -> None:
    assert create_app(settings).conf[name] == EFFECTIVE[name]


def test_every_option_is_one_that_celery_knows() -> None:
    assert sorted(set(EFFECTIVE) - set(DEFAULTS)) == []


def test_the_options_say_what_the_design_says() -> None:
    assert OPTIONS["worker_pool"] == "threads"
    assert (OPTIONS["worker_concurrency"], OPTIONS["worker_prefetch_multiplier"]) == (1, 1)
    assert (OPTIONS["task_acks_late"], OPTIONS["worker_enable_remote_control"]) == (False, False)
    assert tuple(int(part) for part in celery.__version__.split(".")[:2]) >= (5, 7)


def test_the_worker_has_one_thread_and_prefetches_one(worker: Any) -> None:
    assert worker.pool_cls is TaskPool
    assert (worker.concurrency, worker.prefetch_multiplier, worker.task_events) == (1, 1, False)
    assert (worker.consumer.pool is worker.pool, worker.pool.limit) == (True, 1)


def test_the_worker_does_not_talk_to_others(worker: Any) -> None:
    included = {step.alias for step in worker.consumer.blueprint.order if step.include_if(worker.consumer)}
    assert {"Connection", "Tasks"} <= included
    assert included & {"Mingle", "Gossip", "Heart", "Control"} == set()


def test_a_hangup_is_a_shutdown(worker: Any) -> None:
    before = {name: signal.getsignal(name) for name in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1)}
    try:
        worker.install_platform_tweaks(worker)
        assert signal.getsignal(signal.SIGHUP) is signal.getsignal(signal.SIGTERM)
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


def test_the_embedded_broker_is_a_directory(settings: Settings) -> None:
    app = create_app(settings)
    assert isinstance(app.connection().transport, DirectoryTransport)
    assert app.conf.broker_transport_options == {"directory": str(settings.root / "broker"), "polling_interval": 0.5}


def test_a_broker_by_url(tmp_path: Path) -> None:
    app = create_app(Settings(data_dir=tmp_path, broker_url="redis://broker.example:6379/3"))
    connection = app.connection()
    assert (connection.transport.driver_type, connection.hostname, connection.virtual_host) == ("redis", "broker.example", "3")
    assert app.conf.broker_transport_options["socket_connect_timeout"] == 4.0


def test_the_task_has_no_retries_and_keeps_no_result(tmp_path: Path) -> None:
    rig = make_rig(tmp_path)
    app = create_app(rig.settings)
    register(app, rig.supervisor())
    task = app.tasks[TRAIN_TASK]
    assert (task.acks_late, task.ignore_result, getattr(task, "autoretry_for", ())) == (False, True, ())
    assert [name for name in app.tasks if not name.startswith("celery.")] == [TRAIN_TASK]
    task()
    rig.close()


def test_the_root_log_is_ours(worker: Any) -> None:
    assert worker.app.conf.worker_hijack_root_logger is False
    assert "celery" not in {type(handler).__module__.split(".")[0] for handler in logging.getLogger().handlers}
