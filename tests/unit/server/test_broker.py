from __future__ import annotations

import logging
import stat
import threading
import time
from pathlib import Path
from queue import Empty
from typing import Any

import pytest
from celery import Celery

from server.broker import QUEUE, TRAIN_TASK, celery_options
from server.jobs.bell import Bell
from server.settings import Settings
from tests.support.servers import free_port


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path)


def channel(settings: Settings) -> Any:
    app = Celery("test", set_as_current=False)
    app.conf.update(celery_options(settings))
    return app.connection().channel()


def test_a_ring_is_one_message_that_names_the_task(settings: Settings) -> None:
    bell = Bell(settings)
    assert bell.ring() is True
    bell.close()
    listener = channel(settings)
    assert listener._size(QUEUE) == 1
    message = listener._get(QUEUE)
    assert (message["headers"]["task"], message["headers"]["retries"]) == (TRAIN_TASK, 0)
    with pytest.raises(Empty):
        listener._get(QUEUE)


def test_the_directory_is_private_and_empty_afterwards(settings: Settings) -> None:
    Bell(settings).ring()
    folder = settings.root / "broker" / QUEUE
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    channel(settings)._get(QUEUE)
    assert list(folder.iterdir()) == []


def test_messages_come_in_order_and_each_to_one_listener(settings: Settings) -> None:
    sender = channel(settings)
    for number in range(40):
        sender._put(QUEUE, {"number": number})
    taken: list[list[int]] = [[], [], []]

    def listen(numbers: list[int]) -> None:
        listener = channel(settings)
        while True:
            try:
                numbers.append(listener._get(QUEUE)["number"])
            except Empty:
                return

    threads = [threading.Thread(target=listen, args=(numbers,)) for numbers in taken]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(number for numbers in taken for number in numbers) == list(range(40))
    assert all(numbers == sorted(numbers) for numbers in taken)


def test_a_torn_message_is_dropped_not_died_of(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    sender = channel(settings)
    sender._put(QUEUE, {"number": 1})
    [path] = (settings.root / "broker" / QUEUE).iterdir()
    path.write_text('{"num')
    sender._put(QUEUE, {"number": 2})
    with caplog.at_level(logging.WARNING):
        assert channel(settings)._get(QUEUE) == {"number": 2}
    assert "no JSON" in caplog.text


def test_purge(settings: Settings) -> None:
    sender = channel(settings)
    sender._put(QUEUE, {"number": 1})
    sender._put("other", {"number": 2})
    assert (sender._purge(QUEUE), sender._size(QUEUE), sender._size("other")) == (1, 0, 1)


def test_a_broker_that_is_down_is_logged_and_never_raised(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bell = Bell(Settings(data_dir=tmp_path, broker_url=f"redis://:hunter2@127.0.0.1:{free_port()}/0"))
    started = time.monotonic()
    with caplog.at_level(logging.WARNING):
        assert bell.ring() is False
    assert time.monotonic() - started < 5
    assert "the reaper will" in caplog.text
    assert "hunter2" not in caplog.text


def test_a_directory_that_cannot_be_written_is_logged_and_never_raised(settings: Settings) -> None:
    (settings.root / "broker").write_text("a file in its place")
    assert Bell(settings).ring() is False
