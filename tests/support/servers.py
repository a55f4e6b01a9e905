"""Real PostgreSQL and Redis servers for tests, on free ports with temporary directories.

A server that is not installed skips the test, or fails it: see `unavailable`.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg
import redis

from tests.support.unavailable import unavailable

_START_SECONDS = 60.0


_PORTS = range(10_000, 30_000)
"""Below those that the system gives away by itself, so that none is taken between its choice and its server's start."""
_taken: list[int] = []


def free_port() -> int:
    """A port of this machine that no call has returned yet, in this test process or, but for a rare chance, in another."""
    while True:
        port = secrets.choice(_PORTS)
        with socket.socket() as listener, suppress(OSError):
            listener.bind(("127.0.0.1", port))
            if port not in _taken:
                _taken.append(port)
                return port


@contextmanager
def postgres_server() -> Iterator[str]:
    """The URL of a fresh cluster's database `postgres`; it refuses to run as root, so there it runs as the user `postgres`."""
    binaries = _postgres_binaries()
    user = "postgres" if os.geteuid() == 0 else None
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="kmserve-postgres-") as folder:
        if user:
            shutil.chown(folder, "postgres")
        data = f"{folder}/data"
        initialise: list[str | Path] = [
            binaries / "initdb",
            "-D",
            data,
            "-U",
            "postgres",
            "--auth=trust",
            "--no-sync",
            "-E",
            "UTF8",
            "--locale=C",
        ]
        subprocess.run(initialise, check=True, capture_output=True, cwd="/", user=user)
        options = ["-p", str(port), "-h", "127.0.0.1", "-k", folder, "-F", "-c", "full_page_writes=off", "-c", "synchronous_commit=off"]
        url = f"postgresql://postgres@127.0.0.1:{port}/postgres"
        with _running([binaries / "postgres", "-D", data, *options], lambda: psycopg.connect(url).close(), psycopg.Error, user):
            yield url


@contextmanager
def redis_server() -> Iterator[str]:
    """The URL of an empty Redis that keeps nothing on disk."""
    binary = shutil.which("redis-server") or unavailable("redis-server is not on PATH")
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="kmserve-redis-") as folder:
        options = ["--port", str(port), "--bind", "127.0.0.1", "--dir", folder, "--save", "", "--appendonly", "no"]
        with _running([binary, *options], lambda: redis.Redis(port=port).ping(), redis.RedisError):
            yield f"redis://127.0.0.1:{port}/0"


@contextmanager
def _running(command: list[str | Path], ping: Callable[[], object], refused: type[Exception], user: str | None = None) -> Iterator[None]:
    """Run a server until the block ends; SIGINT ends both kinds at once, even with clients still connected."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd="/", user=user)
        try:
            _wait_until_up(process, ping, refused, lambda: _tail(log.fileno()))
            yield
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(_START_SECONDS)


def _wait_until_up(process: subprocess.Popen[bytes], ping: Callable[[], object], refused: type[Exception], log: Callable[[], str]) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            ping()
            return
        except refused as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{process.args!r} did not start: {log()}") from error
        time.sleep(0.05)


def _tail(descriptor: int) -> str:
    return os.pread(descriptor, 2000, 0).decode(errors="replace")


def _postgres_binaries() -> Path:
    on_path = shutil.which("initdb")
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not on_path and not debian:
        unavailable("PostgreSQL's initdb is neither on PATH nor under /usr/lib/postgresql")
    return (debian[-1] if debian else Path(on_path or "")).resolve().parent
