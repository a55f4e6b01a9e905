from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from server.cli_stack import Stack, StackError, configured, free_port, isolated, require_free, terminable, while_alive
from server.presence import sole_api_process

SLEEP = ("-c", "import time; time.sleep(600)")
STUBBORN = ("-c", "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)")
DIES = ("-c", "print('cannot open the database'); raise SystemExit(3)")


def stack_of(tmp_path: Path, **options: Any) -> Stack:
    settings, environ = isolated(tmp_path / "data")
    return Stack(settings, environ, log_dir=tmp_path, **{"api": SLEEP, "worker": SLEEP, **options})


def pids(stack: Stack) -> list[int]:
    return [child.process.pid for child in stack._children]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_leaving_a_stack_stops_both_children(tmp_path: Path) -> None:
    with stack_of(tmp_path) as stack:
        stack.start_api()
        stack.start_worker()
        stack.check()
        started = pids(stack)
    assert len(started) == 2
    assert not any(map(alive, started))


def test_a_failure_stops_them_too(tmp_path: Path) -> None:
    started: list[int] = []

    def fail() -> None:
        with stack_of(tmp_path) as stack:
            stack.start_api()
            started.extend(pids(stack))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert not any(map(alive, started))


def test_a_child_that_will_not_stop_is_killed(tmp_path: Path) -> None:
    stack = stack_of(tmp_path, api=STUBBORN, grace_seconds=0.2)
    stack.start_api()
    while "up" not in (tmp_path / "api.log").read_text():
        time.sleep(0.01)
    (pid,) = pids(stack)
    stack.stop()
    assert not alive(pid)


def test_a_dead_child_is_named_with_the_end_of_its_log(tmp_path: Path) -> None:
    with stack_of(tmp_path, worker=DIES) as stack:
        stack.start_worker()
        with pytest.raises(StackError, match=r"the worker ended with exit code 3(.|\n)*cannot open the database"):
            asyncio.run(while_alive(stack, asyncio.sleep(60)))


def test_while_alive_gives_the_result(tmp_path: Path) -> None:
    with stack_of(tmp_path) as stack:
        stack.start_worker()
        assert asyncio.run(while_alive(stack, asyncio.sleep(0, "done"))) == "done"


def test_a_taken_port_is_refused_before_anything_starts(tmp_path: Path) -> None:
    stack = stack_of(tmp_path)
    with socket.create_server(("127.0.0.1", stack.settings.port)), pytest.raises(StackError, match="--port"):
        stack.start_api()
    assert not pids(stack)
    require_free("127.0.0.1", free_port())


def test_a_data_directory_in_use_is_refused_before_anything_starts(tmp_path: Path) -> None:
    stack = stack_of(tmp_path)
    stack.settings.root.mkdir(parents=True)
    with sole_api_process(stack.settings), pytest.raises(StackError, match="--data-dir"):
        stack.start_api()
    assert not pids(stack)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_signals_interrupt_and_the_old_handlers_come_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    threading.Timer(0.1, partial(os.kill, os.getpid(), number)).start()
    with pytest.raises(KeyboardInterrupt), terminable():
        time.sleep(10)
    assert signal.getsignal(number) is before


def test_children_read_the_settings_that_were_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KMSERVE_MAX_RANK", "8")
    settings, environ = configured(port=9000, data_dir=tmp_path, host=None)
    assert (settings.port, settings.max_rank, settings.host) == (9000, 8, "127.0.0.1")
    assert (environ["KMSERVE_PORT"], environ["KMSERVE_MAX_RANK"]) == ("9000", "8")
    assert "KMSERVE_HOST" not in environ


def test_an_isolated_server_leaves_the_environments_services_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KMSERVE_DATABASE_URL", "postgresql://production/db")
    monkeypatch.setenv("KMSERVE_HOST", "0.0.0.0")
    settings, environ = isolated(tmp_path, passage_tokens=64)
    assert settings.sql_url == f"sqlite:///{tmp_path / 'kmserve.db'}"
    assert settings.host == environ["KMSERVE_HOST"] == "127.0.0.1"
    assert "KMSERVE_DATABASE_URL" not in environ
    assert environ["KMSERVE_PASSAGE_TOKENS"] == "64"


@pytest.mark.parametrize(("host", "shown"), [("0.0.0.0", "127.0.0.1"), ("::1", "[::1]"), ("10.0.0.7", "10.0.0.7")])
def test_the_url_can_be_opened(host: str, shown: str, tmp_path: Path) -> None:
    settings, environ = configured(host=host, port=8123, data_dir=tmp_path)
    assert Stack(settings, environ).url == f"http://{shown}:8123"
